"""Children that this process forks, as servers and daemons do."""

from __future__ import annotations

import os
import select
import signal
import traceback
from collections.abc import Callable
from typing import Any

from servers import PATIENCE_SECONDS, wait_until


class Child:
    """A process that was forked to do something.

    Args:
        work: What it does. It ends as soon as that is done, and cleans nothing up.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self.process = os.fork()
        if self.process == 0:
            code = 1
            try:
                work()
                code = 0
            except BaseException:  # noqa: BLE001 - it is the end of this process
                traceback.print_exc()
            finally:
                os._exit(code)
        self._code: int | None = None

    def join(self) -> None:
        """Wait until it has done its work."""
        try:
            wait_until(self._has_ended, "a forked process to end")
        except BaseException:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
            raise
        assert self._code == 0, f"it ended with {self._code}; its error is in the output"

    def _has_ended(self) -> bool:
        process, status = os.waitpid(self.process, os.WNOHANG)
        if process:
            self._code = os.waitstatus_to_exitcode(status)
        return bool(process)


class Signal:
    """Something that happens in one process, and that another waits for."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def set(self) -> None:
        os.write(self._write, b"x")

    def wait(self) -> None:
        readable, _, _ = select.select([self._read], [], [], PATIENCE_SECONDS)
        assert readable, "the other process does not come to it"
        os.read(self._read, 1)


__all__ = ["Child", "Signal"]
