"""An interrupt at a chosen instruction of forkpoint."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

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


class Instruction(NamedTuple):
    """An instruction of our modules."""

    code: CodeType
    offset: int


class InterruptAt:
    """Raises an interrupt before one instruction of our modules, counted on this thread.

    Args:
        number: The instruction, counted from 1; 0 for none.
        modules: Which modules to count; by default those where the state is critical.
        instruction: The one to count, wherever it is; all of the modules by default.
    """

    def __init__(
        self,
        number: int,
        *,
        modules: Collection[str] = CRITICAL,
        instruction: Instruction | None = None,
    ) -> None:
        self.number = number
        self.passed = 0
        self._modules = modules
        self._instruction = instruction

    def __repr__(self) -> str:
        if self._instruction is None:
            return f"instruction {self.number}"
        code, offset = self._instruction
        return f"{code.co_filename}, {code.co_name}, instruction {offset}, time {self.number}"

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
        code = frame.f_code
        if code is Stored.__missing__.__code__:
            return None  # the driver's decoder, written in C, asks by it and forgets what it raises
        if not self._is_counted(code):
            return None
        frame.f_trace_opcodes = True
        return self._count

    def _is_counted(self, code: CodeType) -> bool:
        if self._instruction is not None:
            return code is self._instruction.code
        name = code.co_filename
        is_ours = name.startswith(PACKAGE)
        return is_ours and name[len(PACKAGE) + 1 : -len(".py")] in self._modules

    def _count(self, frame: Any, event: str, _: object) -> Any:
        if event == "opcode" and self._instruction in (None, (frame.f_code, frame.f_lasti)):
            self.passed += 1
            if self.passed == self.number:
                raise KeyboardInterrupt
        return self._count


class EachInstruction(InterruptAt):
    """Counts how often it comes by each instruction of our modules, and interrupts none."""

    def __init__(self) -> None:
        super().__init__(0)
        self.times: Counter[Instruction] = Counter()

    def _is_counted(self, code: CodeType) -> bool:
        return code.co_filename.startswith(PACKAGE)

    def _count(self, frame: Any, event: str, _: object) -> Any:
        if event == "opcode":
            self.times[Instruction(frame.f_code, frame.f_lasti)] += 1
        return self._count
