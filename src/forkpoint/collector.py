"""Python's collector of cycles, while many objects are made that are all kept."""

from __future__ import annotations

import gc
import os
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
    In a child that was forked meanwhile it is on.
    """

    @wraps(function)
    def paused(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        was_enabled = gc.isenabled()
        try:  # no context manager: an interrupt might come within what enters or leaves it
            if was_enabled:
                _pausing.append(None)
            gc.disable()
            return function(*args, **kwargs)
        finally:
            if was_enabled:
                gc.enable()
                _pausing.clear()

    return paused


_pausing: list[None] = []
"""Not empty while somebody has the collector pause who found it on."""


def _resume() -> None:
    if _pausing:
        gc.enable()
        _pausing.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_resume)
