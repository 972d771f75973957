"""Nothing that a caller passes is taken for an operator, a path, an expression or a statement."""

from __future__ import annotations

import enum
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from bson.code import Code
from bson.objectid import ObjectId
from bson.regex import Regex

from checking import Api, checkpoint, config, id_of, put, value_of
from forkpoint import CheckpointNotFound, InvalidInput, ThreadDeleted
from forkpoint.saver.saver import ForkpointSaver
from injection import FILTERS, METADATA, OPERATORS, WORDS, words_of
from stores import Store


@pytest.fixture(params=["its own", pytest.param("all", marks=pytest.mark.slow)])
def words(request: pytest.FixtureRequest, store: Store) -> list[str]:
    """The words that look like more than a name to the backend of the store, or all of them."""
    if request.param == "all":
        return WORDS
    return words_of(store)


def everything(store: Store) -> list[Any]:
    """Return all that a store has of threads, checkpoints, writes and chunks."""
    return [
        sorted(store.threads(), key=str),
        *(sorted(store.rows(kind), key=str) for kind in ("checkpoints", "writes", "chunks")),
    ]


@pytest.fixture
def filled(api: Api, store: Store) -> list[Any]:
    first = put(api.saver, {"text": "text " * 500}, metadata={"run_id": "run", "k": "v"})
    second = put(api.saver, {"text": "more " * 500}, parent=first)
    api.saver.put_writes(second, [("c", 1)], "task", "~1")
    put(api.saver, {"n": 1}, ns="child")
    api.saver.copy_thread("thread", "copy")
    return everything(store)


# What is no name

Call = Callable[[Api, Any], Awaitable[Any]]
NAMES: dict[str, Call] = {
    "get_tuple, thread": lambda api, bad: api.get_tuple(config(bad)),
    "get_tuple, namespace": lambda api, bad: api.get_tuple(config(ns=bad)),
    "get_tuple, checkpoint": lambda api, bad: api.get_tuple(config(checkpoint_id=bad)),
    "list, thread": lambda api, bad: api.list(config(bad)),
    "list, namespace": lambda api, bad: api.list(config(ns=bad)),
    "list, checkpoint": lambda api, bad: api.list(config(checkpoint_id=bad)),
    "list, before": lambda api, bad: api.list(None, before=config(checkpoint_id=bad)),
    "list, limit": lambda api, bad: api.list(config(), limit=bad),
    "put, thread": lambda api, bad: api.put(config(bad), checkpoint({}), {}, {}),
    "put, namespace": lambda api, bad: api.put(config(ns=bad), checkpoint({}), {}, {}),
    "put, parent": lambda api, bad: api.put(config(checkpoint_id=bad), checkpoint({}), {}, {}),
    "put, checkpoint": lambda api, bad: api.put(config(), checkpoint({}) | {"id": bad}, {}, {}),
    "put_writes, thread": lambda api, bad: api.put_writes(config(bad, "c"), [("c", 1)], "task"),
    "put_writes, namespace": lambda api, bad: api.put_writes(
        config(checkpoint_id="c", ns=bad), [("c", 1)], "task"
    ),
    "put_writes, checkpoint": lambda api, bad: api.put_writes(
        config(checkpoint_id=bad), [("c", 1)], "task"
    ),
    "put_writes, channel": lambda api, bad: api.put_writes(
        config(checkpoint_id="c"), [("c", 1), (bad, 1)], "task"
    ),
    "put_writes, task": lambda api, bad: api.put_writes(config(checkpoint_id="c"), [("c", 1)], bad),
    "put_writes, path": lambda api, bad: api.put_writes(
        config(checkpoint_id="c"), [("c", 1)], "task", bad
    ),
    "get_delta_channel_history, thread": lambda api, bad: api.get_delta_channel_history(
        config=config(bad), channels=["c"]
    ),
    "get_delta_channel_history, channel": lambda api, bad: api.get_delta_channel_history(
        config=config(), channels=["c", bad]
    ),
    "delete_thread": lambda api, bad: api.delete_thread(bad),
    "delete_for_runs": lambda api, bad: api.delete_for_runs(["run", bad]),
    "copy_thread, source": lambda api, bad: api.copy_thread(bad, "target"),
    "copy_thread, target": lambda api, bad: api.copy_thread("thread", bad),
    "prune": lambda api, bad: api.prune(["thread", bad]),
    "prune, strategy": lambda api, bad: api.prune(["thread"], strategy=bad),
    "history": lambda api, bad: history(api, bad),
    "history, limit": lambda api, bad: history(api, "thread", limit=bad),
    "at": lambda api, bad: api.at(bad, 0),
    "value, thread": lambda api, bad: api.value(bad, "channel"),
    "value, checkpoint": lambda api, bad: api.value(config(checkpoint_id=bad), "channel"),
    "value, channel": lambda api, bad: api.value("thread", bad),
    "find_message": lambda api, bad: api.find_message(bad, "m"),
    "find_message, message": lambda api, bad: api.find_message("thread", bad),
    "find_message, channel": lambda api, bad: api.find_message("thread", "m", channel=bad),
    "diff, first": lambda api, bad: api.diff(bad, "thread"),
    "diff, second": lambda api, bad: api.diff("thread", config(bad)),
    "fork, source": lambda api, bad: api.fork(bad),
    "fork, thread": lambda api, bad: api.fork(config(bad)),
    "fork, checkpoint": lambda api, bad: api.fork(config(checkpoint_id=bad)),
    "fork, target": lambda api, bad: api.fork("thread", new_thread_id=bad),
    "fork, history": lambda api, bad: api.fork("thread", history=bad),
    "lineage": lambda api, bad: api.lineage(bad),
    "family": lambda api, bad: api.family(bad),
    "rollback": lambda api, bad: api.rollback(bad),
    "trim": lambda api, bad: api.trim(bad, 1),
    "purge": lambda api, bad: api.purge(bad),
}


async def history(api: Api, *args: Any, **kwargs: Any) -> list[Any]:
    if api.world == "sync":
        return list(api.saver.history(*args, **kwargs))
    return [found async for found in api.saver.ahistory(*args, **kwargs)]


async def test_each_method_refuses_values_that_are_no_names(
    api: Api, store: Store, filled: list[Any]
) -> None:
    for call, make in NAMES.items():
        for bad in OPERATORS:
            if bad == 0 and call.endswith("limit"):
                continue
            with pytest.raises(InvalidInput):
                await make(api, bad)
    assert everything(store) == filled


NUMBERS: dict[str, Call] = {
    "list, limit": lambda api, bad: api.list(config(), limit=bad),
    "history, limit": lambda api, bad: history(api, "thread", limit=bad),
    "at, index": lambda api, bad: api.at("thread", bad),
    "rollback, steps": lambda api, bad: api.rollback("thread", bad),
    "trim, keep": lambda api, bad: api.trim("thread", bad),
}


async def test_each_method_refuses_values_that_are_no_numbers(
    api: Api, store: Store, filled: list[Any]
) -> None:
    bad_numbers: list[Any] = [
        "1",
        "1 UNION SELECT 1",
        "1; DROP TABLE x",
        1.0,
        True,
        [1],
        {"$gt": 0},
    ]
    for call, make in NUMBERS.items():
        for bad in [*bad_numbers, *([] if call == "at, index" else [-1])]:
            with pytest.raises(InvalidInput):
                await make(api, bad)
    assert everything(store) == filled


@pytest.mark.parametrize("number", [2**31, 2**63, 2**70])
async def test_numbers_beyond_the_range_of_databases_are_accepted(
    number: int, api: Api, store: Store, filled: list[Any]
) -> None:
    assert len(await api.list(config(), limit=number)) == 2
    assert len(await history(api, "thread", limit=number)) == 2
    for index in (number, -number):
        with pytest.raises(CheckpointNotFound):
            await api.at("thread", index)
    with pytest.raises(CheckpointNotFound):
        await api.rollback("thread", number)
    report = await api.trim("thread", number)
    assert (report.checkpoints, report.writes) == (0, 0)
    assert await api.list(config(), filter={"k": number}) == []
    put(api.saver, {"n": number % 2**64}, thread_id="other", metadata={"k": number})
    (found,) = await api.list(None, filter={"k": number})
    assert found.metadata == {"k": number}
    await api.delete_thread("other")
    assert len(everything(store)[1]) == len(filled[1])


# What is a name, whatever it looks like


async def test_names_that_look_like_operators_are_plain_names(
    words: list[str], api: Api, store: Store
) -> None:
    for word in words:
        await name_everything(word, api)
    assert store.problems(api.saver) == []


async def name_everything(word: str, api: Api) -> None:
    """Use a word for all there is to name, and leave nothing behind."""
    bystander = put(api.saver, {"n": 0}, thread_id="bystander", metadata={"run_id": "other"})
    given = config(word, ns=word)
    made = {**checkpoint({word: 1, "text": "text " * 500}), "id": word}
    metadata = {word: word, "run_id": word, "nested": {word: [word]}}
    await api.put_writes(config(word, word, word), [(word, word)], word, word)
    stored = await api.put(given, made, metadata, {word: 1})
    following = {**checkpoint({word: 2}), "id": word + "~"}
    await api.put(stored, following, {}, {word: 2})

    found = await api.get_tuple(stored)
    assert (id_of(found), found.metadata) == (word, metadata)
    assert value_of(found) == {word: 1, "text": "text " * 500}
    assert found.pending_writes == [(word, word, word)]
    assert (await api.get_tuple(given)).parent_config == stored
    for wanted in ({word: word}, {"nested": {word: [word]}}, {"nested": {word: []}}):
        assert [id_of(one) for one in await api.list(None, filter=wanted)] == [word]
    assert await api.list(None, filter={word: word + "x"}) == []
    assert len(await api.list(config(word, ns=word), before=config(checkpoint_id=word + "~"))) == 1
    writes = await api.get_delta_channel_history(
        config=config(word, word + "~", word), channels=[word]
    )
    assert list(writes) == [word]

    await api.copy_thread(word, word + "2")
    await api.delete_for_runs([word])
    assert [id_of(one) for one in await api.list(given)] == [word + "~"]
    await api.delete_thread(word)
    assert await api.get_tuple(given) is None
    assert len(await api.list({"configurable": {"thread_id": word + "2"}})) == 2
    await api.prune([word + "2"])
    await api.delete_thread(word + "2")
    assert [one.config for one in await api.list(None)] == [bystander]
    await api.delete_thread("bystander")


async def test_a_fork_may_have_any_name(words: list[str], api: Api, store: Store) -> None:
    for word in words:
        await name_forks(word, api)
    assert store.problems(api.saver) == []


async def name_forks(word: str, api: Api) -> None:
    """Make a fork under a word, and leave nothing behind."""
    bystander = put(api.saver, {"n": 0}, thread_id="bystander")
    root = put(api.saver, {word: 1, "text": "text " * 500}, thread_id=word)
    put(api.saver, {word: 2}, thread_id=word, parent=root)
    fork = await api.fork(
        root, new_thread_id=word + "2", values={word: word}, metadata={word: word}, history="path"
    )

    assert [value_of(one)[word] for one in await history(api, word + "2")] == [1, word]
    assert value_of(await api.at(word, -1)) == {word: 2}
    assert [entry.thread_id for entry in await api.lineage(word + "2")] == [word + "2", word]
    tree = await api.family(word)
    assert [node.entry.thread_id for node in tree] == [word, word + "2"]
    assert word in (await api.diff(word, fork)).channels
    await api.rollback(word)
    await api.trim(word + "2", 1)
    await api.purge(word)
    assert value_of(await api.get_tuple(config(word + "2")))[word] == word
    await api.purge(word + "2")
    assert [one.config for one in await api.list(None)] == [bystander]
    await api.purge("bystander")


async def test_a_deleted_thread_of_any_name_stays_deleted(words: list[str], api: Api) -> None:
    """The database compares the ids of checkpoints with those that went with their thread."""
    for word in words:
        await delete_and_come_late(word, api)


async def delete_and_come_late(word: str, api: Api) -> None:
    made = {**checkpoint({"n": 1}), "id": word}
    stored = await api.put(config(word), made, {}, {"n": 1})
    await api.delete_thread(word)
    with pytest.raises(ThreadDeleted):
        await api.put_writes(stored, [("c", 1)], "task")
    with pytest.raises(ThreadDeleted):
        await api.put(stored, checkpoint({"n": 2}), {}, {"n": 2})
    await api.put(config(word), checkpoint({"n": 3}), {}, {"n": 1})
    assert value_of(await api.get_tuple(config(word))) == {"n": 3}


class Name(str, enum.Enum):
    """As of Python 3.11, what `str` makes of a member is not its value."""

    THREAD = "thread"
    RUN = "run"


async def test_a_subclass_of_str_is_stored_as_its_characters(api: Api, store: Store) -> None:
    made = {**checkpoint({Name.RUN: 1}), "id": Name.RUN}
    metadata = {"run_id": Name.RUN}
    stored = await api.put(config(Name.THREAD, ns=Name.RUN), made, metadata, {Name.RUN: 1})
    await api.put_writes(stored, [(Name.RUN, 1)], Name.RUN, Name.RUN)
    assert stored == config("thread", "run", "run")
    found = await api.get_tuple(config("thread", "run", "run"))
    assert (found.config, value_of(found)) == (stored, {"run": 1})
    assert found.pending_writes == [("run", "run", 1)]
    assert len(await api.list(config(Name.THREAD, ns="run"), filter={"run_id": "run"})) == 1
    after = {**checkpoint({Name.RUN: 2}, {Name.RUN: 2}), "id": "run~"}
    head = await api.put(stored, after, {}, {Name.RUN: 2})
    assert value_of(await api.get_tuple(head)) == {"run": 2}
    await api.delete_for_runs([Name.RUN])
    assert [id_of(one) for one in await api.list(None)] == ["run~"]


async def test_a_fork_accepts_a_subclass_of_str_as_its_id(api: Api) -> None:
    await api.put(config(Name.THREAD), checkpoint({Name.RUN: 1}), {}, {Name.RUN: 1})
    fork = await api.fork(Name.THREAD, new_thread_id=Name.RUN, values={Name.RUN: 2})
    assert fork["configurable"]["thread_id"] == "run"
    assert value_of(await api.get_tuple(config("run"))) == {"run": 2}


class Sly(str):
    """A string that says of itself what is not so."""

    def __contains__(self, _: object) -> bool:
        return False

    def __eq__(self, _: object) -> bool:
        return True

    def __str__(self) -> str:
        return "another"

    def encode(self, *_: Any) -> bytes:
        return b""

    __hash__ = str.__hash__


async def test_a_name_is_its_characters_whatever_its_class_overrides(api: Api) -> None:
    for bad in ("", "a\0b", "\ud800"):
        with pytest.raises(InvalidInput):
            await api.put(config(Sly(bad)), checkpoint({}), {}, {})
        with pytest.raises(InvalidInput):
            await api.put_writes(config(checkpoint_id=Sly(bad)), [("c", 1)], "task")
    name = Sly("thread")
    stored = await api.put(config(name), checkpoint({name: 1}), {"run_id": name}, {name: 1})
    assert type(stored["configurable"]["thread_id"]) is str
    assert value_of(await api.get_tuple(config("thread"))) == {"thread": 1}
    await api.delete_for_runs(["thread"])
    assert await api.list(None) == []


async def test_bson_code_is_stored_as_a_plain_string(api: Api) -> None:
    """The driver's type for code is a string as well, and the server would keep it as code."""
    code = Code("sleep(1000)")
    made = {**checkpoint({"n": 1}), "id": code}
    stored = await api.put(config(code, ns=code), made, {"run_id": "sleep(1000)"}, {"n": 1})
    await api.put_writes(stored, [(code, 1)], code, code)
    name = "sleep(1000)"
    found = await api.get_tuple(config(name, ns=name))
    assert (found.config, value_of(found)) == (config(name, name, name), {"n": 1})
    assert found.pending_writes == [(name, name, 1)]
    await api.delete_for_runs([code])
    assert await api.list(None) == []


# Filters


async def test_a_filter_has_no_operators_and_no_paths(api: Api) -> None:
    stored = [id_of(put(api.saver, {}, metadata=metadata)) for metadata in METADATA]
    for wanted, matches in FILTERS:
        for one in (config(), None):
            found = [stored.index(id_of(item)) for item in await api.list(one, filter=wanted)]
            assert sorted(found) == matches, wanted
        assert (await api.latest(wanted) is None) == (matches == [])


@pytest.mark.parametrize(
    "bad",
    [{"k": Regex(".*")}, {"k": re.compile(".*")}, {"k": ObjectId()}],
)
def test_a_filter_accepts_json_and_no_types_of_a_driver(saver: ForkpointSaver, bad: Any) -> None:
    with pytest.raises(InvalidInput, match="filter"):
        saver.list(config(), filter=bad)
    with pytest.raises(InvalidInput, match="metadata"):
        saver.put(config(), checkpoint({}), bad, {})
    assert list(saver.list(None)) == []


async def test_a_run_id_that_is_no_name_is_plain_metadata(api: Api) -> None:
    for run_id in ({"$ne": ""}, ["run"], 1, None, True, "\ud800"):
        put(api.saver, {}, metadata={"run_id": run_id})
    await api.delete_for_runs(["run", "1", "True", "None", "{'$ne': ''}", "?"])
    assert len(await api.list(config())) == 6
