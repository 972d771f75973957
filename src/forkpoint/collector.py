"""Python's collector of cycles, while many objects are made that are all kept."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


def pauses_collector(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Have the collector of cycles pause while a function runs, in all threads.

    It looks at each new object three times or so, and finds nothing, which takes longer than to
    restore messages. The next collection after the pause looks at all of them once. Such functions
    may call each other, and run in several threads: who found the collector on turns it on again.
    """

    @wraps(function)
    def paused(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        was_enabled = gc.isenabled()
        try:  # no context manager: an interrupt might come within what enters or leaves it
            gc.disable()
            return function(*args, **kwargs)
        finally:
            if was_enabled:
                gc.enable()

    return paused
