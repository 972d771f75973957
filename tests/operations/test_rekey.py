"""A store is encrypted with another key, for the first time, or no longer, while graphs run."""

from __future__ import annotations

import itertools
import signal
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

from checking import Api, config, encrypted_serde, put, value_of
from forkpoint import (
    EncryptionMismatch,
    InvalidInput,
    RekeyReport,
    SafeSerializer,
    SqliteSaver,
    StorageBusy,
    ThreadCatalog,
    ThreadFilter,
    key_ring,
)
from forkpoint.mongodb import contents as mongodb_contents
from forkpoint.mongodb.copies import MongoCopies
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.sqlite import contents as sqlite_contents
from forkpoint.storage.rows import ForkRequest
from forkpoint.testing.encryption import Inverting, Marking
from forkpoint.transfer import import_threads
from graphs import SHAPES
from processes import fork_server
from stores import Store

OLD, NEW = b"the-old-key-of-the-store", b"the-new-key-of-the-store"
TEXTS = [f"text {n} " * 80 for n in range(60)]
SHAPES_RUN = ["chat", "deltas", "interrupts", "stateful subgraphs"]


SHOWN = "what is shown of a thread"
IN_PLAIN_TEXT = [b"text 7 text 7", SHOWN.encode(), b"forkpoint digest key", b"channel_versions"]


def marking(key: bytes) -> EncryptedSerializer:
    return EncryptedSerializer(Marking(key), SafeSerializer())


Serdes = Callable[[bytes], EncryptedSerializer]


class Change(NamedTuple):
    """The serializers of a store before and after, and what the store has of the former alone."""

    old: Any
    new: Any
    marks: list[bytes]

    def rings(self) -> tuple[EncryptedSerializer, EncryptedSerializer]:
        return key_ring(self.new, self.old), key_ring(self.old, self.new)

    def left(self, store: Store) -> list[bytes]:
        """Return what is left of the form before, in the bytes of the store."""
        content = store.content()
        return [mark for mark in self.marks if mark in content]


ROTATION = Change(marking(OLD), marking(NEW), [OLD])
TO_ENCRYPTION = Change(SafeSerializer(), marking(NEW), IN_PLAIN_TEXT)
FROM_ENCRYPTION = Change(marking(OLD), SafeSerializer(), [OLD])
BY_NAME = {"rotation": ROTATION, "to": TO_ENCRYPTION, "from": FROM_ENCRYPTION}
CHANGES = [pytest.param(TO_ENCRYPTION, id="to"), pytest.param(FROM_ENCRYPTION, id="from")]


def fill(saver: ForkpointSaver, thread_id: str) -> None:
    first = put(saver, {"texts": TEXTS[:40], "n": 1}, thread_id=thread_id)
    second = put(saver, {"texts": TEXTS, "n": 2}, thread_id=thread_id, parent=first)
    saver.put_writes(second, [("c", TEXTS), ("d", 1), ("__error__", "e")], "task")


def run_graphs(saver: ForkpointSaver, prefix: str = "") -> None:
    for name in SHAPES_RUN:
        shape = SHAPES[name]
        graph = shape.build(saver)
        for value in shape.inputs:
            graph.invoke(value, config(prefix + name), **shape.options)
    saver.fork(f"{prefix}chat", new_thread_id=f"{prefix}forked", history="path")
    saver.copy_thread(f"{prefix}interrupts", f"{prefix}copied")
    saver.trim(f"{prefix}deltas", 1)  # hidden checkpoints


def everything(saver: ForkpointSaver) -> list[str]:
    return [repr(stored) for stored in saver.list(None)]


@pytest.mark.parametrize(
    "serde",
    [marking, pytest.param(encrypted_serde, marks=pytest.mark.slow)],
    ids=["marking", "aes"],
)
@pytest.mark.parametrize("world", ["sync", "async"])
async def test_afterwards_nothing_needs_the_old_key(
    store: Store, serde: Serdes, world: str
) -> None:
    with store.saver(serde=serde(OLD), preview=["n"]) as saver:
        run_graphs(saver)
        fill(saver, "t")
        before = everything(saver)
    assert serde is not marking or OLD in store.content()
    seen: list[RekeyReport] = []
    with store.saver(serde=key_ring(serde(NEW), serde(OLD))) as saver:
        assert everything(saver) == before
        report = await Api(saver, world).rekey(on_progress=seen.append)
        assert everything(saver) == before
        assert report.rewritten > 100
        assert report.foreign == 0
        assert seen[-1] == report
        again = await Api(saver, world).rekey()
        assert again == RekeyReport(contents=report.rewritten)
    if serde is marking:
        assert OLD not in store.content()
    old = serde(OLD).cipher
    for kind in ("checkpoints", "writes", "chunks"):
        for row in store.rows(kind):
            with pytest.raises((ValueError, AssertionError, UnicodeDecodeError)):
                old.decrypt("marking" if serde is marking else "aes", row.content[1 + len("aes") :])
    with store.saver(serde=serde(NEW), preview=["n"]) as saver:
        assert everything(saver) == before
        assert saver.check().problems == ()
        assert store.problems(saver) == []
        thread = ThreadCatalog(saver).get("t")
        assert thread is not None
        assert thread.values == {"n": 2}
        run_graphs(saver, "more ")
    with store.saver(serde=key_ring(serde(OLD), serde(NEW))) as saver:  # and back
        assert saver.rekey().foreign == 0
    with store.saver(serde=serde(OLD)) as saver:
        assert set(before) < set(everything(saver))


def test_what_a_run_has_replaced_is_encrypted_anew(store: Store) -> None:
    with store.saver(serde=marking(OLD)) as saver:
        stored = put(saver, {"n": 1})
        saver.put_writes(stored, [("__error__", "the first")], "task")
        with ThreadCatalog(saver).run("thread") as run:
            place = {**run.config["configurable"], **stored["configurable"]}
            saver.put_writes({"configurable": place}, [("__error__", "the second")], "task")
            with store.saver(serde=key_ring(marking(NEW), marking(OLD))) as ring:
                assert ring.rekey().foreign == 0
            with store.saver(serde=marking(NEW)) as new:
                (write,) = new.get_tuple(stored).pending_writes
                assert write[2] == "the second"
                with ThreadCatalog(new).run("thread", if_busy="rollback"):
                    (write,) = new.get_tuple(stored).pending_writes
                    assert write[2] == "the first"
                assert store.problems(new) == []
    assert OLD not in store.content()


@pytest.mark.parametrize(
    ("change", "writers"),
    [
        pytest.param(ROTATION, 2, id="rotation"),
        pytest.param(TO_ENCRYPTION, 4, id="to"),
        pytest.param(FROM_ENCRYPTION, 4, id="from", marks=pytest.mark.slow),
    ],
)
def test_graphs_run_meanwhile(store: Store, change: Change, writers: int) -> None:
    """Savers of both orders write; those that write in the old form stop at some time."""
    rings = change.rings()
    is_over = threading.Event()
    errors: list[BaseException] = []

    def chat(name: str, saver: ForkpointSaver, began: threading.Event) -> None:
        try:
            shape = SHAPES["chat"]
            graph = shape.build(saver)
            for number in itertools.count():
                graph.invoke(shape.inputs[0], config(f"{name} {number % 5}"))
                if number % 5 == 4:
                    saver.copy_thread(f"{name} {number % 5}", f"{name} copy {number}")
                began.set()
                if is_over.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - it is shown by the test
            errors.append(error)
        finally:
            began.set()

    with store.saver(serde=change.old) as saver:
        fill(saver, "t")
    with store.saver(serde=rings[0]) as new, store.saver(serde=rings[1]) as old:
        threads = []
        for number in range(writers):
            began = threading.Event()
            threads.append(threading.Thread(target=chat, args=(f"w{number}", new, began)))
            threads[-1].start()
            assert began.wait(60)
        late = iter(range(3))

        def write_in_the_old_form(_: RekeyReport) -> None:
            for n in late:
                fill(old, f"late {n}")
                old.fork("t", new_thread_id=f"late fork {n}")
                break

        try:
            report = new.rekey(on_progress=write_in_the_old_form)
        finally:
            is_over.set()
            for thread in threads:
                thread.join()
        assert errors == []
        assert report.foreign == 0
        assert list(late) == []
    assert change.left(store) == []
    with store.saver(serde=change.new) as saver:
        assert saver.check().problems == ()
        assert store.problems(saver) == []


def test_a_fork_that_was_prepared_before_is_prepared_again(
    mongo_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In SQLite a fork is one transaction, and nobody writes in the middle of it."""
    store = mongo_store
    is_prepared, may_go_on = threading.Event(), threading.Event()
    fork = MongoCopies.fork

    def late_fork(self: MongoCopies, request: ForkRequest) -> None:
        is_prepared.set()
        assert may_go_on.wait(60)
        fork(self, request)

    with store.saver(serde=marking(OLD)) as saver:
        fill(saver, "t")
    with store.saver(serde=key_ring(marking(NEW), marking(OLD))) as saver:
        monkeypatch.setattr(MongoCopies, "fork", late_fork)
        forking = threading.Thread(target=saver.fork, args=("t",), kwargs={"new_thread_id": "f"})
        forking.start()
        try:
            assert is_prepared.wait(60)
            saver.rekey()
        finally:
            may_go_on.set()
            forking.join()
        assert OLD not in store.content()
    with store.saver(serde=marking(NEW)) as saver:
        assert saver.get_tuple(config("f")) is not None
        assert saver.check().problems == ()
        assert store.problems(saver) == []


def rekey_until_killed(store: Store, commands: int, name: str) -> None:
    ring, _ = BY_NAME[name].rings()
    # In this process only.
    sqlite_contents._ROWS_AT_ONCE = mongodb_contents._ROWS_AT_ONCE = 10
    store.mortal(commands, serde=ring).rekey()


@pytest.mark.parametrize(
    ("name", "every"),
    [
        ("rotation", 28),
        ("to", 40),
        ("from", 40),
        pytest.param("rotation", 4, marks=pytest.mark.slow),
        pytest.param("to", 4, marks=pytest.mark.slow),
        pytest.param("from", 4, marks=pytest.mark.slow),
    ],
)
def test_a_killed_one_is_called_again(name: str, every: int, store: Store) -> None:
    change = BY_NAME[name]
    _, other_ring = change.rings()
    with store.saver(serde=change.old) as saver:
        for n in range(3):
            fill(saver, f"t{n}")
        before = everything(saver)
    kills = 0
    for commands in itertools.count(1, store.times(every)):
        process = fork_server().Process(target=rekey_until_killed, args=(store, commands, name))
        process.start()
        process.join()
        assert process.pid is not None
        store.await_end_of(process.pid)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        with store.saver(serde=other_ring) as saver:
            assert everything(saver) == before
    assert kills > 1
    with store.saver(serde=change.new) as saver:
        assert everything(saver) == before
        assert saver.check().problems == ()
    assert change.left(store) == []  # now that the log of an SQLite file is gone, too


@pytest.mark.parametrize("change", CHANGES)
def test_a_store_is_encrypted_in_place_and_no_longer(store: Store, change: Change) -> None:
    ring, other_ring = change.rings()
    is_plain = change is TO_ENCRYPTION
    shown = ThreadFilter(values={"shown": SHOWN})
    with store.saver(serde=change.old, preview=["shown"]) as saver:
        run_graphs(saver)
        fill(saver, "t")
        put(saver, {"shown": SHOWN}, thread_id="shown")
        before = everything(saver)
        if is_plain:
            assert [thread.thread_id for thread in ThreadCatalog(saver).search(shown)] == ["shown"]
    assert change.left(store) == change.marks
    with (
        store.saver(serde=ring, preview=["shown"]) as saver,
        store.saver(serde=other_ring, preview=["shown"]) as other,
    ):
        assert everything(saver) == everything(other) == before
        times = {thread.thread_id: thread.updated_at for thread in ThreadCatalog(saver).walk()}
        report = saver.rekey()
        assert report.rewritten > 100
        assert report.foreign == 0
        assert everything(saver) == everything(other) == before
        assert saver.rekey() == RekeyReport(contents=report.rewritten)
        assert times == {
            thread.thread_id: thread.updated_at for thread in ThreadCatalog(saver).walk()
        }
    assert change.left(store) == []
    if is_plain:
        for terms in ("value_terms", "listed_values"):
            assert not any(record.get(terms) for record in store.stored("threads").values())
        for kind in ("checkpoints", "writes"):
            records = [row.get("record") or {} for row in store.stored(kind).values()]
            assert not any(record.get("value_terms") for record in records)
    with store.saver(serde=change.old) as saver:  # what is not given both must have the new form
        for work in (lambda: saver.get_tuple(config("t")), lambda: put(saver, {"n": 1})):
            with pytest.raises(EncryptionMismatch):
                work()
    with store.saver(serde=change.new, preview=["shown"]) as saver:
        assert everything(saver) == before
        assert saver.check().problems == ()
        assert store.problems(saver) == []
        thread = ThreadCatalog(saver).get("shown")
        assert thread is not None
        assert thread.values == {"shown": SHOWN}
        if not is_plain:
            assert [thread.thread_id for thread in ThreadCatalog(saver).search(shown)] == ["shown"]
        run_graphs(saver, "more ")
        assert store.problems(saver) == []


@pytest.mark.in_turns
def test_what_no_key_of_the_ring_decrypts_stays_as_it_is(store: Store) -> None:
    with store.saver(serde=marking(OLD)) as saver:
        fill(saver, "t")
    damaged = store.rows("chunks")[0]
    store.change("chunks", damaged.key, content=b"\7unknown" + damaged.content)
    ring, _ = ROTATION.rings()
    with store.saver(serde=ring) as saver:
        assert saver.rekey().foreign == 1
        assert len(saver.check().problems) > 0
    (row,) = (row for row in store.rows("chunks") if row.key == damaged.key)
    assert row.content == b"\7unknown" + damaged.content


@pytest.mark.in_turns
def test_it_ends_where_others_go_on_with_the_old_key(store: Store) -> None:
    rings = key_ring(marking(NEW), marking(OLD)), key_ring(marking(OLD), marking(NEW))
    numbers = itertools.count()
    with store.saver(serde=rings[0]) as new, store.saver(serde=rings[1]) as old:
        put(old, {"n": 1}, thread_id="first")
        with pytest.raises(StorageBusy, match="older key"):
            new.rekey(on_progress=lambda _: put(old, {"n": 1}, thread_id=f"t{next(numbers)}"))
        assert new.rekey().foreign == 0
    with store.saver(serde=marking(NEW)) as saver:
        assert saver.get_tuple(config("t0")) is not None


@pytest.mark.in_turns
def test_it_is_refused_before_anything_is_written(store: Store) -> None:
    with store.saver(serde=marking(OLD)) as saver:
        fill(saver, "t")
        with pytest.raises(InvalidInput, match="key_ring"):
            saver.rekey()
    with store.saver(serde=key_ring(marking(NEW), marking(OLD))) as saver:
        with pytest.raises(InvalidInput, match="owners"):
            saver.for_owner("somebody").rekey()
        with pytest.raises(InvalidInput):
            saver.rekey(on_progress="nothing")  # type: ignore[arg-type]
    assert NEW not in store.content()
    with (
        store.saver(serde=key_ring(marking(NEW), marking(b"a third key"))) as saver,
        pytest.raises(EncryptionMismatch, match="another key"),
    ):
        saver.rekey()
    assert NEW not in store.content()


@pytest.mark.in_turns
def test_all_threads_of_a_large_store_are_encrypted_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forkpoint.operations.rekey._THREADS_AT_ONCE", 2)
    with store.saver(serde=marking(OLD)) as saver:
        for n in range(5):
            put(saver, {"n": n}, thread_id=f"t{n}")
    with store.saver(serde=key_ring(marking(NEW), marking(OLD))) as saver:
        assert saver.rekey().foreign == 0
    assert OLD not in store.content()
    with store.saver(serde=marking(NEW)) as saver:
        assert sorted(value_of(found)["n"] for found in saver.list(None)) == list(range(5))


def test_a_store_with_two_secrets_keeps_them(path: Path, tmp_path: Path) -> None:
    """Of which only one is that of its digests."""
    for key, place in ((OLD, path), (NEW, tmp_path / "other.db")):
        with SqliteSaver(place, serde=marking(key)) as saver:
            put(saver, {"text": "x" * 3000})
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("ATTACH ? AS other", (str(tmp_path / "other.db"),))
        copied = "INSERT INTO forkpoint_settings (name, value) SELECT 'secret:2', value FROM"
        where = "WHERE name LIKE 'secret:%'"
        connection.execute(f"{copied} other.forkpoint_settings {where}")
    with (
        SqliteSaver(path, serde=key_ring(marking(NEW), marking(OLD))) as saver,
        pytest.raises(EncryptionMismatch),
    ):
        saver.rekey()


class Overridden(EncryptedSerializer):
    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return super().loads_typed(data)


def test_a_key_ring_is_of_ciphers_that_know_their_own() -> None:
    inverting = EncryptedSerializer(Inverting(), SafeSerializer())
    with pytest.raises(InvalidInput, match="same key"):
        key_ring(encrypted_serde(NEW), encrypted_serde(NEW))
    with pytest.raises(InvalidInput, match="do not check"):
        key_ring(encrypted_serde(NEW), inverting)
    with pytest.raises(InvalidInput, match="EncryptedSerializer"):
        key_ring(SafeSerializer())
    with pytest.raises(InvalidInput, match="overridden"):
        key_ring(encrypted_serde(NEW), Overridden(inverting.cipher, SafeSerializer()))
    with pytest.raises(InvalidInput, match="same key"):
        key_ring(encrypted_serde(NEW), SafeSerializer(), SafeSerializer())
    with pytest.raises(InvalidInput, match="must be a serializer"):
        key_ring(encrypted_serde(NEW), None)  # type: ignore[arg-type]
    ring: Any = key_ring(encrypted_serde(NEW), encrypted_serde(OLD))
    with pytest.raises(InvalidInput, match="another one"):
        key_ring(ring, encrypted_serde(b"a-third-key-0123"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(None, marking(NEW), id="to"),
        pytest.param(marking(OLD), None, id="from"),
    ],
)
def test_to_and_from_encryption_a_store_is_imported(
    before: Any, after: Any, new_store: Callable[[], Store]
) -> None:
    source, target = new_store(), new_store()
    with source.saver(serde=before) as old, target.saver(serde=after) as new:
        run_graphs(old)
        fill(old, "t")
        report = import_threads(old, new, kind="forkpoint", verify=True)
        assert report.is_complete
        assert report.differences == ()
        assert sorted(everything(new)) == sorted(everything(old))
        assert new.check().problems == ()
    assert (TEXTS[0].encode() in target.content()) is (after is None)
    assert OLD not in target.content()
