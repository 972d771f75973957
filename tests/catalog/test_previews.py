"""Chosen channels of a thread's newest state are shown in lists, and threads are found by them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from datetime import datetime, timezone
from enum import Enum, IntEnum
from typing import Any

import numpy
import pytest
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from catalogs import HOUR, HOURS
from checking import Api, config, id_of, put
from commands import Commands
from forkpoint import (
    InvalidInput,
    RetentionPolicy,
    SqliteSaver,
    ThreadCatalog,
    ThreadFilter,
)
from forkpoint.previews import PREVIEW_BYTES, PREVIEW_CHANNELS, PREVIEW_PARTS, preview_of
from stores import MongoStore, Store

CHOSEN = ("title", "topic", "n")


class Titled(TypedDict, total=False):
    title: str
    topic: Any
    n: int
    secret: str


def titled(saver: Any) -> Any:
    builder = StateGraph(Titled)
    builder.add_node("name", lambda state: {"topic": {"kind": state["title"][:1]}})
    builder.add_node("count", lambda state: {"n": state.get("n", 0) + 1})
    builder.add_edge(START, "name")
    builder.add_edge("name", "count")
    return builder.compile(checkpointer=saver)


def ids(catalog: ThreadCatalog, **values: Any) -> list[str]:
    thread_ids = [thread.thread_id for thread in catalog.search(ThreadFilter(values=values))]
    assert catalog.count(ThreadFilter(values=values)) == len(thread_ids)
    return sorted(thread_ids)


@pytest.fixture
def api_with_preview(store: Store, api: Api) -> Api:
    return Api(store.saver(preview=CHOSEN), api.world)


@pytest.mark.in_turns
async def test_the_state_is_shown_and_found_as_graphs_run(api_with_preview: Api) -> None:
    api = api_with_preview
    graph = titled(api.saver)
    catalog = ThreadCatalog(api.saver)
    for n, title in enumerate(["Apples", "Bears", "Ants"]):
        given = {"title": title, "secret": "s"}
        if api.world == "sync":
            graph.invoke(given, config(f"t{n}"))
        else:
            await graph.ainvoke(given, config(f"t{n}"))
    first = catalog.get("t0")
    assert first is not None
    assert first.values == {"title": "Apples", "topic": {"kind": "A"}, "n": 1}
    assert [thread.values for thread in catalog.search(sort_by="thread_id", descending=False)] == [
        first.values,
        {"title": "Bears", "topic": {"kind": "B"}, "n": 1},
        {"title": "Ants", "topic": {"kind": "A"}, "n": 1},
    ]
    assert ids(catalog, topic={"kind": "A"}) == ["t0", "t2"]
    assert ids(catalog, title="Bears", n=1) == ["t1"]
    assert ids(catalog, n=True) == ids(catalog, n="1") == ids(catalog, secret="s") == []
    if api.world == "sync":
        graph.update_state(config("t0"), {"title": "Pears", "n": 7})
    else:
        await graph.aupdate_state(config("t0"), {"title": "Pears", "n": 7})
    assert ids(catalog, title="Apples") == []
    assert ids(catalog, title="Pears", n=7) == ["t0"]


def title_of(catalog: ThreadCatalog, thread_id: str = "thread") -> Any:
    """Return the title that a thread shows, and that a search finds it by."""
    thread = catalog.get(thread_id)
    assert thread is not None
    (listed,) = catalog.search(ThreadFilter(ids=[thread_id]))
    assert listed == thread
    title = thread.values.get("title")
    assert (thread_id in (ids(catalog, title=title) if title else [])) == bool(title)
    return title


async def test_a_preview_is_that_of_the_head_after_each_operation(
    api_with_preview: Api, store: Store
) -> None:
    api = api_with_preview
    catalog = ThreadCatalog(api.saver)
    checkpoints = [put(api.saver, {"title": "1"})]
    for n in range(2, 6):
        checkpoints.append(put(api.saver, {"title": str(n)}, parent=checkpoints[-1]))
    assert title_of(catalog) == "5"
    await api.fork(config("thread", id_of(checkpoints[1])), new_thread_id="old")
    await api.fork("thread", new_thread_id="head")
    await api.fork("thread", new_thread_id="changed", values={"title": "other"})
    await api.copy_thread("thread", "copy")
    catalog.clone("thread", "clone", label="x")
    catalog.clone("thread", "empty", checkpoints=False)
    catalog.rollover("thread", "next", channels=["title"])
    catalog.rollover("thread", "named", values={"title": "named"})
    expected = {"old": "2", "changed": "other", "empty": None, "named": "named"}
    for thread_id in ("old", "head", "changed", "copy", "clone", "empty", "next", "named"):
        assert title_of(catalog, thread_id) == expected.get(thread_id, "5"), thread_id
    await api.rollback("thread", 2)
    assert title_of(catalog) == "3"
    assert ids(catalog, title="5") == sorted({"head", "copy", "clone", "next"})
    await api.trim("thread", 1)
    assert title_of(catalog) == "3"
    catalog.update("thread", tags=["a"])
    assert title_of(catalog) == "3"
    assert store.problems(api.saver) == []


async def test_a_preview_is_that_of_the_last_put_into_the_graph_itself(
    api_with_preview: Api, store: Store
) -> None:
    api = api_with_preview
    catalog = ThreadCatalog(api.saver)
    put(api.saver, {"title": "3"})
    put(api.saver, {"title": "child"}, ns="child:1")
    assert title_of(catalog) == "3"
    put(store.saver(), {"title": "unseen"})  # by a saver without a preview
    assert title_of(catalog) is None
    put(api.saver, {"title": "again"})
    assert title_of(catalog) == "again"
    await api.purge("thread")
    assert ids(catalog, title="again") == []
    assert store.problems(api.saver) == []


class Counted(TypedDict, total=False):
    n: int


@pytest.mark.in_turns
def test_what_a_graph_does_not_have_is_still_shown(store: Store) -> None:
    """Of two versions of an application, one runs a thread, and then the other."""
    saver = store.saver(preview=CHOSEN)
    titled(saver).invoke({"title": "long " * 200}, config())
    builder = StateGraph(Counted)
    builder.add_node("count", lambda state: {"n": state["n"] + 1})
    builder.add_edge(START, "count")
    for each in (saver, store.saver(preview=CHOSEN)):  # one knows what was put last
        graph = builder.compile(checkpointer=each)
        graph.invoke({"n": 6}, config())
        catalog = ThreadCatalog(each)
        (thread,) = catalog.search()
        assert thread.values["title"].startswith("long long")
        assert (thread.values["topic"], thread.values["n"]) == ({"kind": "l"}, 7)
        assert ids(catalog, topic={"kind": "l"}, n=7) == ["thread"]
        graph.update_state(config(), {"n": 8})
        assert ids(catalog, topic={"kind": "l"}, n=8) == ["thread"]
    titled(saver).update_state(config(), {"title": "new", "topic": None})
    assert ids(catalog, title="new", topic=None) == ["thread"]
    assert store.problems(saver) == []


@pytest.mark.in_turns
async def test_a_checkpoint_that_is_put_again_is_shown_as_it_is_then(
    api_with_preview: Api, store: Store
) -> None:
    saver = api_with_preview.saver
    first = put(saver, {"title": "one"})
    checkpoint_ = saver.get_tuple(first).checkpoint
    checkpoint_["channel_values"] = {"title": "two"}
    saver.put(config(), checkpoint_, {}, {"title": 1})
    catalog = ThreadCatalog(store.saver())
    assert ids(catalog, title="two") == ["thread"]
    assert ids(catalog, title="one") == []
    (thread,) = catalog.search()
    assert thread.values == {"title": "two"}


@pytest.mark.in_turns
def test_other_savers_and_owners_see_what_they_may(new_store: Callable[[], Store]) -> None:
    store = new_store()
    saver = store.saver(preview=CHOSEN)
    acme, other = (saver.for_owner(owner) for owner in ("acme", "other"))
    put(acme, {"title": "same"}, thread_id="a")
    put(other, {"title": "same"}, thread_id="o")
    put(saver, {"title": "same"}, thread_id="n")
    reader = store.saver()
    assert ids(ThreadCatalog(reader), title="same") == ["a", "n", "o"]
    assert ids(ThreadCatalog(reader, owner="acme"), title="same") == ["a"]
    assert ids(ThreadCatalog(other), title="same") == ["o"]
    listed = ThreadCatalog(reader).search(ThreadFilter(owner="acme", values={"title": "same"}))
    assert [thread.thread_id for thread in listed] == ["a"]


@pytest.mark.in_turns
@pytest.mark.parametrize(
    ("policy", "done"),
    [
        (RetentionPolicy(expired=True), "deleted"),
        (RetentionPolicy(max_age=HOUR), "deleted"),
        (RetentionPolicy(max_checkpoints_per_thread=1), "trimmed"),
    ],
    ids=["expired", "age", "checkpoints"],
)
def test_values_limit_every_rule_of_retention(
    policy: RetentionPolicy, done: str, new_store: Callable[[], Store]
) -> None:
    store = new_store()
    saver = store.saver(preview=CHOSEN, ttl=HOUR)
    for title in ("old", "kept"):
        before = put(saver, {"title": "old"}, thread_id=title)
        put(saver, {"title": title}, parent=before, thread_id=title)
        store.age(title, created_at=2 * HOURS, updated_at=2 * HOURS)
    catalog, chosen = ThreadCatalog(saver), ThreadFilter(values={"title": "old"})
    for dry_run in (True, False):
        result = catalog.apply_retention(policy, chosen, dry_run=dry_run)
        assert getattr(result, done) == ("old",)
    assert len(list(saver.list(config("kept")))) == 2
    assert store.problems(saver) == []


@pytest.mark.in_turns
def test_lists_and_part_of_them_are_found(new_store: Callable[[], Store]) -> None:
    saver = new_store().saver(preview=["topic"])
    put(saver, {"topic": ["a", "b", {"c": [1, 2]}]}, thread_id="t1")
    put(saver, {"topic": ["a", {"c": [1]}, {"d": 2}]}, thread_id="t2")
    catalog = ThreadCatalog(saver)
    assert ids(catalog, topic=["a"]) == ["t1", "t2"]
    assert ids(catalog, topic=["b", "a"]) == ["t1"]
    assert ids(catalog, topic=[{"c": [2]}]) == ["t1"]
    assert ids(catalog, topic=[{"c": [1], "d": 2}]) == []
    assert ids(catalog, topic=[]) == ["t1", "t2"]


@pytest.mark.in_turns
def test_nothing_of_what_is_shown_is_stored_in_the_clear_if_the_serializer_encrypts(
    new_store: Callable[[], Store],
) -> None:
    store = new_store()
    serde = EncryptedSerializer.from_pycryptodome_aes(key=b"k" * 16)
    saver = store.saver(serde=serde, preview=CHOSEN)
    at = put(saver, {"title": "confidential"})
    saver.put_writes(at, [("__error__", ValueError("confidential"))], "task")
    catalog = ThreadCatalog(saver)
    (thread,) = catalog.search()
    assert thread.values == {"title": "confidential"}
    assert thread.error == "ValueError('confidential')"
    assert b"confidential" not in store.content()
    for reader in (catalog, ThreadCatalog(saver, owner="acme")):
        with pytest.raises(InvalidInput, match="encrypts"):
            reader.search(ThreadFilter(values={"title": "confidential"}))
    (unreadable,) = ThreadCatalog(store.saver()).search()
    assert (unreadable.values, unreadable.error) == ({}, "an error that cannot be shown")
    assert ThreadCatalog(store.saver()).count(ThreadFilter(values={"title": "confidential"})) == 0


class Mood(str, Enum):
    GLAD = "glad"


class Level(IntEnum):
    LOW = 1


class Plain(Enum):
    A = "a"


SHOWN: dict[str, tuple[Any, Any]] = {
    "text": ("x" * 200, "x" * 200),
    "long text": ("x" * 201, "x" * 199 + "…"),
    "number": (2**63, 2**63),
    "nothing": (None, None),
    "nested": ({"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}),
    "message": (HumanMessage("Hello"), {"type": "human", "content": "Hello"}),
    "messages": (
        [HumanMessage("Hello"), AIMessage([{"type": "text", "text": "Hi"}, {"type": "image"}])],
        {"type": "ai", "content": "Hi"},
    ),
    "no messages": ([], []),
    "surrogate": ("\ud800", "\ud800"),
    "text of a message": (AIMessage("Hi").text, "Hi"),
    "subclass": (type("Text", (str,), {})("x"), "x"),
    "enums": ([Mood.GLAD, Level.LOW, {"a": Plain.A}], ["glad", 1, {"a": "a"}]),
    "enum": (Plain.A, "a"),
    "numbers": ([numpy.int64(3), numpy.float64(0.5)], [3, 0.5]),
    "time": (datetime(2024, 1, 2, tzinfo=timezone.utc), "2024-01-02T00:00:00+00:00"),
}
LEFT_OUT: dict[str, Any] = {
    "tuple": (1, 2),
    "not a number": float("nan"),
    "key": {1: 2},
    "bytes": b"x",
    "large": {"a": "x" * PREVIEW_BYTES},
    "many": list(range(PREVIEW_PARTS)),
    "too many": list(range(PREVIEW_PARTS + 1)),
    "many in one": {"a": [1] * (PREVIEW_PARTS + 1)},
    "huge number": 10**5000,
}


@pytest.mark.parametrize("name", SHOWN)
def test_short_values_are_shown(name: str) -> None:
    value, expected = SHOWN[name]
    assert json.loads(preview_of({"a": value, "b": 1}, ["a"])) == {"a": expected}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_long_values_and_objects_are_left_out(name: str) -> None:
    assert preview_of({"a": LEFT_OUT[name], "b": 1}, ["a", "b", "c"]) == '{"b":1}'


def test_the_type_of_a_message_is_cut_as_its_text_is() -> None:
    message = ChatMessage("x" * 1000, role="user", type="chat")
    message.type = "y" * 1_000_000  # type: ignore[assignment]
    assert len(preview_of({"a": [message]}, ["a"])) < 500


class Tolerant(EncryptedSerializer):
    """It reads what was stored before there was a key."""

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return (super() if "+" in data[0] else self.serde).loads_typed(data)


@pytest.mark.in_turns
def test_a_preview_is_not_stored_in_the_clear_beside_values_that_are_encrypted(
    new_store: Callable[[], Store],
) -> None:
    plain = EncryptedSerializer.from_pycryptodome_aes(key=b"k" * 16)
    serde = Tolerant(plain.cipher)
    store = new_store()
    with pytest.raises(InvalidInput, match="Tolerant overrides"):
        store.saver(serde=serde, preview=["title"])
    saver = store.saver(serde=serde)
    put(saver, {"title": "confidential"})
    assert b"confidential" not in store.content()


@pytest.mark.in_turns
def test_a_bad_preview_is_refused(new_store: Callable[[], Store]) -> None:
    store = new_store()
    names = [f"c{n}" for n in range(PREVIEW_CHANNELS + 1)]
    for wrong in ("title", b"x", {"a": 1}, [1], 5, None, names):
        with pytest.raises(InvalidInput):
            store.saver(preview=wrong)
    catalog = ThreadCatalog(store.saver(preview=names[1:]))
    for wrong_values in ([1], {"a": object()}, {1: 2}, {"a": list(range(101))}, "x"):
        with pytest.raises(InvalidInput):
            catalog.search(ThreadFilter(values=wrong_values))  # type: ignore[arg-type]


def test_what_is_shown_is_put_to_mongodb_with_the_state(mongo_store: MongoStore) -> None:
    commands = Commands()
    with mongo_store.saver(event_listeners=[commands], preview=["n"]) as saver:
        first = put(saver, {"n": 1})
        saver.put_writes(first, [("n", 2)], "task")
        commands.clear()
        put(saver, {"n": 2}, parent=first)
        assert commands.names == ["insert"]
        assert len(commands.sent[0].command["documents"]) == 2


def test_what_is_shown_is_put_to_sqlite_with_the_state() -> None:
    numbers = []
    for preview in ([], ["n"]):
        connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        statements: list[str] = []
        with SqliteSaver(connection, preview=preview) as saver:
            first = put(saver, {"n": 1})
            connection.set_trace_callback(statements.append)
            put(saver, {"n": 2}, parent=first)
        numbers.append(len(statements))
    assert numbers[0] == numbers[1]


def change_preview(store: Store, content: Any) -> None:
    (key,) = [
        key for key, row in store.stored("writes").items() if b"title" in (row["content"] or b"")
    ]
    store.change("writes", key, content=content)


@pytest.mark.in_turns
@pytest.mark.parametrize("content", [b'\0{"title":"b"}', b"\0title", "of another type"])
async def test_a_preview_that_was_changed_is_not_shown(
    content: bytes | str, api_with_preview: Api, store: Store
) -> None:
    put(api_with_preview.saver, {"title": "a"})
    assert api_with_preview.saver.check().is_clean
    change_preview(store, content)
    (problem,) = api_with_preview.saver.check().problems
    assert problem.thread_id == "thread"
    assert "is not what was written" in problem.reason or isinstance(content, str)
    catalog = ThreadCatalog(api_with_preview.saver)
    catalog.saver.copy_thread("thread", "copy")
    catalog.update("thread", owner="ann")
    assert [thread.values for thread in catalog.search()] == [{}, {}]
    assert not catalog.search(ThreadFilter(values={"title": "b"})).items
