"""While another process or connection writes: who waits, for how long, and who does not."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from checking import checkpoint, config, put
from forkpoint import InvalidInput, SqliteSaver, StorageBusy, ThreadCatalog
from forkpoint.runtime import steps
from forkpoint.saver import parts_of
from forkpoint.sqlite import transactions
from servers import PATIENCE_SECONDS, wait_until

LIMIT = PATIENCE_SECONDS
COUNT = 20

Open = Callable[..., Any]


class Clock:
    """The time by which calls count how long they wait, which can be moved on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(steps, "time", clock)
    return clock


@pytest.fixture(params=["path", "sqlite3", "aiosqlite"])
def open_saver(request: pytest.FixtureRequest, path: Path) -> Open:
    """Opens a saver in each of the ways in which operations get their threads."""

    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[SqliteSaver]:
        if request.param == "aiosqlite":
            async with aiosqlite.connect(path, timeout=60) as connection:
                yield SqliteSaver(connection, **options)
        elif request.param == "sqlite3":
            plain = sqlite3.connect(path, check_same_thread=False, timeout=60)
            yield SqliteSaver(plain, **options)
            plain.close()
        else:
            async with SqliteSaver(path, **options) as saver:
                yield saver

    return opened


class Writer:
    """Somebody else who writes to the database."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    def begin(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def end(self) -> None:
        self._connection.execute("ROLLBACK")

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    writer = Writer(path)
    yield writer
    writer.close()


async def fill(saver: SqliteSaver) -> Any:
    made = checkpoint({"n": 0})
    return await saver.aput(config(), made, {}, {"n": 1})


def waiting_puts(saver: SqliteSaver) -> int:
    """Return how many puts have found the store locked, and wait."""
    storage: Any = parts_of(saver).context.storage
    return sum(pending.patience is not None for pending in list(storage._puts._commits._queue))


def is_waiting(saver: SqliteSaver, count: int) -> Callable[[], bool]:
    return lambda: waiting_puts(saver) == count


def puts(saver: SqliteSaver, world: str, executor: ThreadPoolExecutor) -> list[asyncio.Future[Any]]:
    """Put to many threads at once, from threads or from the loop."""
    if world == "async":
        return [
            asyncio.ensure_future(
                saver.aput(config(f"new-{n}"), checkpoint({"n": n}), {}, {"n": 1})
            )
            for n in range(COUNT)
        ]
    return [
        asyncio.wrap_future(executor.submit(put, saver, {"n": n}, thread_id=f"new-{n}"))
        for n in range(COUNT)
    ]


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(COUNT + 4) as executor:
        yield executor


async def reads(saver: SqliteSaver) -> None:
    """Read in both worlds, from this thread and from others."""
    for _ in range(8):  # more than there are workers
        assert await saver.aget_tuple(config()) is not None
    assert await asyncio.to_thread(saver.get_tuple, config()) is not None
    assert len([entry async for entry in saver.alist(config())]) == 1
    assert await asyncio.to_thread(lambda: len(list(saver.list(config())))) == 1


@pytest.mark.parametrize("world", ["sync", "async"])
async def test_each_put_is_refused_after_its_own_time_and_reads_do_not_wait(
    world: str, open_saver: Open, writer: Writer, clock: Clock, executor: ThreadPoolExecutor
) -> None:
    async with open_saver() as saver:
        await fill(saver)
        writer.begin()
        calls = puts(saver, world, executor)
        await asyncio.to_thread(wait_until, is_waiting(saver, COUNT), "all puts")
        await asyncio.wait_for(reads(saver), LIMIT)
        assert waiting_puts(saver) == COUNT

        clock.ahead += 60  # for all of them at once
        errors = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), LIMIT)
        assert {type(error) for error in errors} == {StorageBusy}
        writer.end()
        assert len([entry async for entry in saver.alist(None)]) == 1
        await asyncio.wait_for(saver.aput(config("more"), checkpoint({"n": 1}), {}, {}), LIMIT)


@pytest.mark.parametrize("world", ["sync", "async"])
async def test_all_that_waits_is_stored_when_the_store_is_free(
    world: str, open_saver: Open, writer: Writer, executor: ThreadPoolExecutor
) -> None:
    async with open_saver() as saver:
        await fill(saver)
        writer.begin()
        calls = puts(saver, world, executor)
        others = [
            asyncio.ensure_future(saver.acopy_thread("thread", f"copy-{n}")) for n in range(COUNT)
        ]
        others += [asyncio.ensure_future(asyncio.to_thread(saver.fork, "thread"))]
        others += [asyncio.ensure_future(ThreadCatalog(saver).acreate("made"))]
        await asyncio.to_thread(wait_until, is_waiting(saver, COUNT), "all puts")
        await asyncio.wait_for(reads(saver), LIMIT)
        assert not any(call.done() for call in (*calls, *others))

        writer.end()
        await asyncio.wait_for(asyncio.gather(*calls, *others), LIMIT)
        assert len([entry async for entry in saver.alist(None)]) == 2 + 2 * COUNT
        assert await ThreadCatalog(saver).aget("made") is not None


async def test_other_writes_are_refused_after_their_own_time_too(
    open_saver: Open, writer: Writer, clock: Clock, executor: ThreadPoolExecutor
) -> None:
    async with open_saver() as saver:
        await fill(saver)
        writer.begin()
        calls = [saver.adelete_thread("thread") for _ in range(COUNT)]
        calls.append(asyncio.to_thread(saver.delete_thread, "thread"))
        calls.append(asyncio.to_thread(saver.fork, "thread"))
        calls.append(ThreadCatalog(saver).acreate("made"))
        tasks = [asyncio.ensure_future(call) for call in calls]
        await asyncio.wait_for(reads(saver), LIMIT)
        refused: list[Any] = []
        while len(refused) < len(tasks):  # each counts from when it found the store locked
            clock.ahead += 60
            refused = list((await asyncio.wait(tasks, timeout=0.1))[0])
        assert {type(task.exception()) for task in refused} == {StorageBusy}
        writer.end()
        assert len([entry async for entry in saver.alist(None)]) == 1
        assert await ThreadCatalog(saver).aget("made") is None


@pytest.mark.parametrize("world", ["sync", "async"])
async def test_calls_that_cannot_even_open_the_database_do_not_wait_in_a_row(
    world: str, open_saver: Open, path: Path, clock: Clock, executor: ThreadPoolExecutor
) -> None:
    """Others keep it from being read, too, so that not even the tables can be looked for."""
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("CREATE TABLE others (n)")
        other.execute("BEGIN EXCLUSIVE")
        async with open_saver() as saver:
            calls = puts(saver, world, executor)
            refused: list[Any] = []
            while len(refused) < COUNT:  # each counts from when it found the store locked
                clock.ahead += 60
                refused = list((await asyncio.wait(calls, timeout=0.1))[0])
                assert clock.ahead < 60 * 10 * LIMIT
            assert {type(task.exception()) for task in refused} == {StorageBusy}
            waiting = asyncio.ensure_future(saver.aget_tuple(config()))
            await asyncio.wait([waiting], timeout=0.1)
            waiting.cancel()
            await asyncio.wait([waiting], timeout=LIMIT)
            assert waiting.cancelled()
            other.execute("ROLLBACK")
            await fill(saver)
            await reads(saver)
    other.close()


async def test_a_call_that_waits_can_be_cancelled_and_stores_nothing(
    open_saver: Open, writer: Writer, executor: ThreadPoolExecutor
) -> None:
    async with open_saver() as saver:
        await fill(saver)
        writer.begin()
        calls = puts(saver, "async", executor)
        calls += [asyncio.ensure_future(saver.adelete_thread("thread")) for _ in range(COUNT)]
        calls += [asyncio.ensure_future(ThreadCatalog(saver).acreate("made"))]
        await asyncio.to_thread(wait_until, is_waiting(saver, COUNT), "all puts")
        for call in calls:
            call.cancel()
        await asyncio.wait(calls, timeout=LIMIT)
        assert all(call.cancelled() for call in calls)
        assert waiting_puts(saver) == 0

        writer.end()
        await saver.aput(config("more"), checkpoint({"n": 1}), {}, {"n": 1})
        assert len([entry async for entry in saver.alist(None)]) == 2
        assert await ThreadCatalog(saver).aget("made") is None


WAITING: dict[str, Callable[[SqliteSaver], Any]] = {
    "put": lambda saver: put(saver, {"n": 1}, thread_id="new"),
    "put_writes": lambda saver: saver.put_writes(config("thread", "1"), [("c", 1)], "task"),
    "delete_thread": lambda saver: saver.delete_thread("thread"),
    "fork": lambda saver: saver.fork("thread"),
    "catalog": lambda saver: ThreadCatalog(saver).create("new"),
    "lease": lambda saver: ThreadCatalog(saver).run("thread").__enter__(),
}


@pytest.mark.parametrize("opened", ["path", "sqlite3"])
@pytest.mark.parametrize("operation", WAITING)
def test_ctrl_c_while_a_call_waits_leaves_a_saver_that_works(
    operation: str, opened: str, path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = sqlite3.connect(path, check_same_thread=False)
    pauses: list[float] = []
    pause = steps.Patience.pause

    def pause_and_note(patience: steps.Patience, timeout: float) -> float | None:
        pauses.append(timeout)
        return pause(patience, timeout)

    monkeypatch.setattr(steps.Patience, "pause", pause_and_note)
    with SqliteSaver(path if opened == "path" else connection, busy_timeout=1000) as saver:
        put(saver, {"n": 0})
        assert threading.current_thread() is threading.main_thread()
        writer.begin()

        def press() -> None:
            wait_until(lambda: len(pauses) > 2, "the call")
            os.kill(os.getpid(), signal.SIGINT)
            wait_until(lambda: is_over, "the end of the call")
            writer.end()

        is_over = False
        with ThreadPoolExecutor(1) as executor:
            pressed = executor.submit(press)
            try:
                with pytest.raises(KeyboardInterrupt):
                    WAITING[operation](saver)
                assert saver.get_tuple(config()) is not None
            finally:
                is_over = True
            pressed.result(LIMIT)
            assert executor.submit(put, saver, {"n": 2}, thread_id="more").result(LIMIT)
        assert len(list(saver.list(None))) == 2
        assert ThreadCatalog(saver).count() == 2
        assert not ThreadCatalog(saver).is_busy("thread")
        writer.begin()  # the file is locked by nobody
        writer.end()
    connection.close()


def test_a_put_behind_a_call_that_takes_long_gives_up_unless_it_is_being_stored(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "OWN_CALLS_SECONDS", 0.0)
    with SqliteSaver(path, busy_timeout=0.05) as saver, ThreadPoolExecutor(2) as executor:
        head = put(saver, {"n": 0})
        with parts_of(saver).context.storage.reading():  # it holds the connection
            with pytest.raises(StorageBusy, match="other calls of this process"):
                executor.submit(saver.put_writes, head, [("c", 1)], "task").result(LIMIT)
            with pytest.raises(StorageBusy, match="other calls of this process"):
                executor.submit(put, saver, {"n": 1}, thread_id="new").result(LIMIT)
            with pytest.raises(StorageBusy, match="other calls of this process"):
                executor.submit(saver.get_tuple, config()).result(LIMIT)
            refused = executor.submit(saver.delete_thread, "thread")
            assert isinstance(refused.exception(LIMIT), StorageBusy)
        (found,) = saver.list(None)
        assert not found.pending_writes
        assert put(saver, {"n": 1}, thread_id="new")


@pytest.mark.parametrize("is_passed", [False, True])
async def test_calls_of_a_process_wait_for_each_other_though_they_may_not_wait_for_others(
    is_passed: bool, path: Path
) -> None:
    connection = sqlite3.connect(path, check_same_thread=False, timeout=0)
    saver = SqliteSaver(connection) if is_passed else SqliteSaver(path, busy_timeout=0)
    saver.setup()
    threads = [f"thread {number}" for number in range(50)]
    with ThreadPoolExecutor(4) as executor:
        put_at_once = [executor.submit(put, saver, {"n": 1}, thread_id=id_) for id_ in threads]
        await asyncio.gather(*(saver.aget_tuple(config(id_)) for id_ in threads))
    assert all(future.result() for future in put_at_once)
    saver.close()
    connection.close()


@pytest.mark.parametrize("world", ["sync", "async"])
async def test_a_lease_that_ends_while_somebody_writes_is_released_after_that(
    world: str, open_saver: Open, writer: Writer
) -> None:
    async with open_saver(busy_timeout=0) as saver:
        catalog = ThreadCatalog(saver)
        options: Any = {"if_busy": "wait", "ttl": timedelta(hours=1)}
        lease = await catalog.run("thread", **options).__aenter__()
        writer.begin()
        with pytest.raises(StorageBusy):
            lease.__exit__() if world == "sync" else await lease.__aexit__()
        writer.end()
        async with catalog.run("thread", **options, timeout=timedelta(seconds=LIMIT)):
            pass


def test_a_connection_that_is_passed_keeps_its_own_busy_timeout(path: Path, writer: Writer) -> None:
    connection = sqlite3.connect(path, check_same_thread=False, timeout=0.25)
    saver = SqliteSaver(connection)
    put(saver, {"n": 0})
    writer.begin()
    with pytest.raises(StorageBusy):
        put(saver, {"n": 1})
    assert connection.execute("PRAGMA busy_timeout").fetchone() == (250,)
    assert parts_of(saver).context.storage._transactions.timeout == 0.25  # type: ignore[attr-defined]
    writer.end()
    put(saver, {"n": 1})
    assert connection.execute("PRAGMA busy_timeout").fetchone() == (250,)
    connection.close()


def test_a_lease_that_cannot_be_renewed_lasts_as_long_as_it_would(
    path: Path, writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    with SqliteSaver(path, busy_timeout=0) as saver:
        put(saver, {"n": 0})
        with ThreadCatalog(saver).run("thread") as lease:
            writer.begin()
            assert lease.renew()
            assert "the lease on 'thread' is not renewed: " in caplog.text
            writer.end()
            assert lease.renew()
            put(saver, {"n": 1}, parent=lease.config)
        assert ThreadCatalog(saver).lease("thread") is None
        assert len(list(saver.list(config()))) == 2


@pytest.mark.parametrize("is_in_use", [True, False])
def test_a_transaction_that_the_caller_left_open_is_left_alone(path: Path, is_in_use: bool) -> None:
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    saver = SqliteSaver(connection)
    if is_in_use:
        put(saver, {"n": 0})
    connection.execute("CREATE TABLE mine (n)")
    connection.execute("BEGIN")
    connection.execute("INSERT INTO mine VALUES (1)")
    for call in (lambda: put(saver, {"n": 1}), lambda: saver.get_tuple(config())):
        with pytest.raises(InvalidInput, match="open transaction"):
            call()
    assert connection.in_transaction
    connection.execute("COMMIT")
    assert connection.execute("SELECT n FROM mine").fetchall() == [(1,)]
    put(saver, {"n": 1})
    connection.close()


@pytest.mark.parametrize("timeout", [-1, "60", True, float("nan"), float("inf"), [1]])
def test_a_busy_timeout_that_is_none_is_refused(timeout: Any, path: Path) -> None:
    with pytest.raises(InvalidInput, match="busy_timeout"):
        SqliteSaver(path, busy_timeout=timeout)
    assert not path.exists()


def test_a_call_in_the_middle_of_another_one_is_refused_and_breaks_nothing(path: Path) -> None:
    """As a signal handler makes it, or a callback of SQLite."""
    with SqliteSaver(path) as saver:
        put(saver, {"n": 0})
        connection: Any = parts_of(saver).context.storage._connection  # type: ignore[attr-defined]
        errors: list[BaseException] = []

        def call(_: str) -> None:
            connection.set_trace_callback(None)
            for operation in (saver.get_tuple, saver.delete_thread):
                try:
                    operation(config() if operation == saver.get_tuple else "thread")  # type: ignore[arg-type]
                except StorageBusy as error:
                    errors.append(error)

        connection.set_trace_callback(call)
        put(saver, {"n": 1})
        assert [type(error) for error in errors] == [StorageBusy] * 2
        assert len(list(saver.list(None))) == 2
