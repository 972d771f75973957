"""Python's collector of cycles pauses while values are restored, and is as it was afterwards."""

from __future__ import annotations

import gc
import os
import threading

from forkpoint.collector import pauses_collector
from servers import PATIENCE_SECONDS


def test_who_found_the_collector_on_turns_it_on_again() -> None:
    inner = pauses_collector(gc.isenabled)
    outer = pauses_collector(lambda: (inner(), gc.isenabled()))
    assert outer() == (False, False)
    assert gc.isenabled()
    gc.disable()
    try:
        assert outer() == (False, False)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_collector_is_on_in_a_child_that_was_forked_during_a_pause() -> None:
    begun, may_end = threading.Event(), threading.Event()

    @pauses_collector
    def wait() -> None:
        begun.set()
        assert may_end.wait(PATIENCE_SECONDS)

    thread = threading.Thread(target=wait)
    thread.start()
    assert begun.wait(PATIENCE_SECONDS)
    child = os.fork()
    if child == 0:
        os._exit(0 if gc.isenabled() else 1)
    _, status = os.waitpid(child, 0)
    may_end.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0
    assert gc.isenabled()
