"""An interrupt at a chosen instruction of forkpoint."""

from __future__ import annotations

import gc
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import forkpoint
from forkpoint.mongodb.documents import Stored

PACKAGE = str(Path(forkpoint.__file__).parent)


CRITICAL = {
    "runtime/group_commit",
    "catalog/leases",
    "operations/cache",
    "mongodb/put",
    "mongodb/storage",
    "runtime/runner",
    "sqlite/put_queue",
    "sqlite/storage",
    "sqlite/transactions",
    "runtime/steps",
    "operations/turns",
    "runtime/workers",
}
"""The modules that hold locks, transactions and those who wait."""


class InterruptAt:
    """Raises an interrupt before one instruction of our modules, counted on this thread.

    Args:
        number: The instruction, counted from 1; 0 for none.
        everywhere: Whether to count all our modules, or only some.
        modules: Those; by default where the state is critical.
    """

    def __init__(
        self, number: int, *, everywhere: bool = False, modules: Collection[str] = CRITICAL
    ) -> None:
        self.number = number
        self.passed = 0
        self._everywhere = everywhere
        self._modules = modules

    def __enter__(self) -> InterruptAt:
        # What a finalizer raises, Python reports and forgets; and they run as garbage is found.
        self._is_collecting = gc.isenabled()
        gc.disable()
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)
        if self._is_collecting:
            gc.enable()

    @property
    def is_over(self) -> bool:
        """Whether the operation ended before the instruction."""
        return self.passed < self.number

    def _call(self, frame: Any, _: str, __: object) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(PACKAGE) or not (
            self._everywhere or name[len(PACKAGE) + 1 : -len(".py")] in self._modules
        ):
            return None
        if frame.f_code is Stored.__missing__.__code__:
            return None  # the driver's decoder, written in C, asks by it and forgets what it raises
        frame.f_trace_opcodes = True
        return self._count

    def _count(self, frame: Any, event: str, _: object) -> Any:
        if event == "opcode":
            self.passed += 1
            if self.passed == self.number:
                raise KeyboardInterrupt
        return self._count
