"""Whatever a store has as JSON. Pure."""

from __future__ import annotations

import math
from typing import Any

from forkpoint import json_values
from forkpoint.encoding.stored_object import StoredObject


def json_value(value: Any) -> Any:
    """Return a value as JSON can have it; see `forkpoint.json_values`.

    A number that is none is text. An object whose type this process does not know has the name of
    it under `type`.
    """
    return json_values.json_value(value, _simplified)


def _simplified(value: Any) -> Any:
    if type(value) is float:
        return value if math.isfinite(value) else str(value)
    if isinstance(value, StoredObject):
        content = {"value": value.value} if value.value is not None else {"fields": dict(value)}
        return {"type": value.type_name, **content}
    return value
