"""What LangGraph's own server answers to the client of threads, and what this one does.

The same script is sent to both. Where they differ, `DIFFERENCES` says how, and why.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import httpx
import pytest
from langgraph_sdk.client import (
    LangGraphClient,
    SyncLangGraphClient,
    SyncThreadsClient,
    ThreadsClient,
)

from calling import calling_at
from forkpoint import SqliteSaver
from forkpoint.server import create_app
from forkpoint.server.serving import load_graphs
from langgraph_servers import EXAMPLE, running
from served import said, serving
from stores import SqliteStore
from thread_clients import Awaited, Noted, parameters

ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d.*")
HEADERS = ("content-type", "x-pagination-total", "x-pagination-next")
MISSING = str(UUID(int=7))


DIFFERENCES: dict[str, str] = {
    # Threads
    r".+ \| body(\[\])?\.interrupts": "there, a thread without a run has none; here, an empty one",
    r".+ \| body(\[\])?\.error": "there, null without an error; here, no key, as the type has it",
    r".+ \| body(\[\])?\.config\.configurable": "there, what the last run was given; here, nothing",
    r"(create with supersteps|search: .+) \| body(\[\])?\.status": "here, a thread is interrupted "
    "if a task waits for an answer; there, also if a node is to run next",
    r"get with ttl \| body\.ttl": "there, in memory, no thread expires",
    r"create with any id \| .+": "there, ids are UUIDs; here, any text",
    r"get what was refused \| .+": "here, a thread whose supersteps are refused is not made",
    r"copy \| body\.values": "here, the answer has the values, as any thread has",
    r"prune history \| .+": "there, in memory, there is no keep_latest",
    # States
    r".+ \| body(\[\])?\.metadata\.(langgraph_\w+|run_attempt|created_by|(user|thread)_id)": "the "
    "server there says of itself what made a checkpoint; here, graph, assistant and run are said",
    r"(state|history).* \| body(\[\])?\.metadata\.(user|plan|n)": "there, checkpoints repeat the "
    "metadata of the thread",
    r"history.* \| body\[\]\.tasks\[\]\.result\.messages\[\]\.id": "there, all messages are "
    "streamed, which gives them ids before they are stored",
    r"state by (an unknown )?id \| body\.checkpoint\.checkpoint_ns": "there, a config without it",
    r"(state|history), chosen \| .+": "there, select of states is not heeded",
    r"history before an id \| .+": "there, an id is refused, which the client's type allows",
    r"write without a graph \| .+": "here, the only graph is that of threads that name none",
    # The streaming protocol
    r"stream: events \| \[\]\.params\.data\.messages\[\]\.\w+": "there, messages in events are "
    "without their empty fields",
    r"stream: question \| \[\]\.params\.data\.value": "here, the question is also under the name "
    "that the client in Python reads",
    r"command: an id that is none \| body\.detail": "here, also the reason as all refusals have it",
    r"command: a subscription \| .+": "there, it is taken and forgotten, as the request has no "
    "events; here, it is refused",
    r"wait for a question \| body\.__interrupt__\[\]\.response_schema": "there, null without one",
}
"""Where answers differ, as a pattern of the step and the place, and why."""


class Asked:
    """A server that answers, by a client that notes the answers."""

    def __init__(self, address: str, *, is_sync: bool = False) -> None:
        hooks = {"response": [self._note]}
        self.http = calling_at(address, event_hooks=hooks)
        self.threads: Any
        self.runs: Any
        if is_sync:
            sync_hooks = {"response": [self._keep]}
            http = httpx.Client(base_url=address, timeout=60, event_hooks=sync_hooks)
            sync_client = SyncLangGraphClient(http)
            self.threads = Noted(Awaited(sync_client.threads))
            self.runs = Awaited(sync_client.runs)
        else:
            client = LangGraphClient(self.http)
            self.threads, self.runs = Noted(client.threads), client.runs
        self.answers: dict[str, Any] = {}
        self._last: httpx.Response | None = None

    async def _note(self, response: httpx.Response) -> None:
        self._keep(response)

    def _keep(self, response: httpx.Response) -> None:
        self._last = response

    async def ask(self, step: str, call: Awaitable[Any]) -> Any:
        """Note what a step is answered with, and return it, or None if it is refused."""
        assert step not in self.answers
        try:
            value = await call
        except httpx.HTTPStatusError:
            assert self._last is not None
            value, body = None, {"detail": type(json.loads(self._last.text)["detail"]).__name__}
        else:
            body = value
        assert self._last is not None
        self.answers[step] = {
            "status": self._last.status_code,
            "headers": {name: self._last.headers.get(name) for name in HEADERS},
            "body": shape(body),
        }
        return value


def shape(value: Any) -> Any:
    """Return an answer without its ids and times."""
    if isinstance(value, dict):
        return {ID.sub("<id>", key): shape(part) for key, part in value.items()}
    if isinstance(value, list):
        return [shape(part) for part in value]
    if isinstance(value, str):
        return "<time>" if TIME.fullmatch(value) else ID.sub("<id>", value)
    return value


def id_of(name: str) -> str:
    return str(uuid5(UUID(int=1), name))


async def script(server: Asked) -> None:
    """Call each method of the client of threads, with each of its parameters."""
    for part in (
        *(made, changed, run, read, written, found, joined, streamed),
        *(copied, removed, apart),
    ):
        await part(server, server.threads, server.runs)


async def made(server: Asked, threads: Any, _: Any) -> None:
    ask = server.ask
    await ask("create", threads.create())
    full = {"thread_id": id_of("a"), "metadata": {"user": "u1"}, "graph_id": "chat"}
    await ask("create with all", threads.create(**full))
    await ask("create again", threads.create(thread_id=id_of("a")))
    again = {"thread_id": id_of("a"), "metadata": {"user": "u2"}}
    await ask("create or get", threads.create(**again, if_exists="do_nothing"))
    await ask("create with ttl", threads.create(thread_id=id_of("ttl"), ttl=90))
    ttl = {"ttl": 90, "strategy": "keep_latest"}
    await ask("create with strategy", threads.create(thread_id=id_of("ttl 2"), ttl=ttl))
    steps = [{"updates": [{"values": said("one"), "as_node": "__start__"}]}]
    await ask(
        "create with supersteps",
        threads.create(thread_id=id_of("steps"), graph_id="chat", supersteps=steps),
    )
    await ask("get", threads.get(id_of("a")))
    await ask("get with ttl", threads.get(id_of("ttl"), include=["ttl"]))
    await ask("get the missing", threads.get(MISSING))


async def changed(server: Asked, threads: Any, _: Any) -> None:
    ask = server.ask
    await ask("update", threads.update(id_of("a"), metadata={"plan": None, "n": 1}))
    await ask("update quietly", threads.update(id_of("a"), metadata={"n": 2}, return_minimal=True))
    await ask("update ttl", threads.update(id_of("a"), metadata={}, ttl=30))
    await ask("update the missing", threads.update(MISSING, metadata={}))


async def run(server: Asked, threads: Any, runs: Any) -> None:
    ask = server.ask
    await ask("wait", runs.wait(id_of("a"), "chat", input=said("Hello")))
    await ask("wait for a question", runs.wait(id_of("a"), "chat", input=said("Well?")))
    await ask("get what is interrupted", threads.get(id_of("a")))
    await ask("state of what is interrupted", threads.get_state(id_of("a"), subgraphs=True))
    await ask("wait for an answer", runs.wait(id_of("a"), "chat", command={"resume": "good"}))
    await ask("get what has run", threads.get(id_of("a")))


async def read(server: Asked, threads: Any, _: Any) -> None:
    ask, thread_id = server.ask, id_of("a")
    await ask("state", threads.get_state(thread_id))
    await ask("state of the empty", threads.get_state(id_of("ttl")))
    await ask("state of the missing", threads.get_state(MISSING))
    states = await ask("history", threads.get_history(thread_id, limit=50))
    place = states[3]["checkpoint"]
    here = place["checkpoint_id"]
    await ask("state by id", threads.get_state(thread_id, checkpoint_id=here))
    await ask("state by checkpoint", threads.get_state(thread_id, checkpoint=place))
    await ask("state by an unknown id", threads.get_state(thread_id, checkpoint_id=MISSING))
    await ask("history by default", threads.get_history(thread_id))
    await ask("history, limited", threads.get_history(thread_id, limit=2))
    await ask("history before an id", threads.get_history(thread_id, before=here))
    await ask("history before a checkpoint", threads.get_history(thread_id, before=place))
    await ask(
        "history before a config", threads.get_history(thread_id, before={"configurable": place})
    )
    await ask("history by metadata", threads.get_history(thread_id, metadata={"step": 1}))
    await ask("history at", threads.get_history(thread_id, checkpoint=place, limit=5))
    await ask("history of the missing", threads.get_history(MISSING))
    await ask("history of the empty", threads.get_history(id_of("ttl")))
    await ask("history, chosen", threads.get_history(thread_id, limit=1, select=["next"]))
    await ask("state, chosen", threads.get_state(thread_id, select=["next"]))


async def written(server: Asked, threads: Any, _: Any) -> None:
    ask, thread_id = server.ask, id_of("a")
    states = await threads.get_history(thread_id, limit=50)
    place = states[3]["checkpoint"]
    await ask("write", threads.update_state(thread_id, said("more"), as_node="answer"))
    await ask("write at", threads.update_state(thread_id, said("x"), checkpoint=place))
    at = {"checkpoint_id": place["checkpoint_id"]}
    await ask("write at an id", threads.update_state(thread_id, said("y"), **at))
    await ask("write nothing", threads.update_state(thread_id, None))
    await ask("write as nobody", threads.update_state(thread_id, said("z"), as_node="nobody"))
    await ask("write to the missing", threads.update_state(MISSING, said("z")))


async def found(server: Asked, threads: Any, _: Any) -> None:
    ask = server.ask
    searches: dict[str, Any] = {
        "all": {"limit": 100},
        "page": {"limit": 2, "offset": 1},
        "last page": {"limit": 2, "offset": 4},
        "metadata": {"metadata": {"user": "u1"}},
        "metadata of another type": {"metadata": {"n": True}},
        "values": {"values": {"messages": [{"content": "x"}]}, "ids": [id_of("a")]},
        "ids": {"ids": [id_of("a"), id_of("ttl"), MISSING]},
        "status": {"status": "idle", "ids": [id_of("a"), id_of("ttl")]},
        "unknown status": {"status": "lost"},
        "select": {"select": ["thread_id", "status"], "metadata": {"user": "u1"}},
        "unknown select": {"select": ["x"]},
        "extract": {
            "metadata": {"user": "u1"},
            "select": ["thread_id"],
            "extract": {"first": "values.messages[0].content", "no": "metadata.x.y"},
        },
        "bad extract": {"extract": {"a b": "values.x"}},
    }
    for key in ("thread_id", "status", "created_at", "updated_at", "state_updated_at"):
        searches[f"by {key}"] = {"sort_by": key, "sort_order": "asc", "select": ["thread_id"]}
    for name, options in searches.items():
        await ask(f"search: {name}", threads.search(**options))
    await ask("search: limit 0", threads.search(limit=-1))
    await ask("count", threads.count())
    # There, it fails with 500 at a thread without values.
    values = {"values": {"messages": [{"content": "x"}]}, "metadata": {"user": "u1"}}
    await ask("count by values", threads.count(**values))
    await ask("count by metadata", threads.count(metadata={"user": "u1"}))
    await ask("count by status", threads.count(status="idle", metadata={"user": "u1"}))


async def joined(server: Asked, threads: Any, runs: Any) -> None:
    """Join the stream of a thread, and run until it has sent a state."""
    names: list[str] = []

    async def listen() -> None:
        options = {"stream_mode": ["run_modes"], "last_event_id": "-"}
        async for part in await threads.join_stream(id_of("a"), **options):
            names.append(part.event)
            if part.event == "values":
                return

    listening = asyncio.create_task(listen())
    while not listening.done():
        await runs.wait(id_of("a"), "chat", input=said("Hello"), multitask_strategy="enqueue")
    await listening
    server.answers["join the stream"] = {"events": list(dict.fromkeys(names))}


async def streamed(server: Asked, threads: Any, _: Any) -> None:
    """Begin runs by the streaming protocol, and follow what they send."""
    options = {"assistant_id": "chat", "run_start_timeout": 60, "transport": "sse"}
    async with threads.stream(id_of("streamed"), **options) as stream:
        await stream.run.start(input=said("Hello"))
        server.answers["stream: events"] = [event async for event in sent(stream, "completed")]
        server.answers["stream: output"] = shape(await stream.output)
    async with threads.stream(id_of("asked"), **options) as stream:
        await stream.run.start(input=said("Well?"))
        events = [event async for event in sent(stream, "interrupted")]
        asked = [event for event in events if event["method"] == "input.requested"]
        server.answers["stream: question"] = asked
        while not stream.interrupted:  # noqa: ASYNC110  # which another task of the client hears
            await asyncio.sleep(0.01)
        await stream.run.respond("good")
        server.answers["stream: output after an answer"] = shape(await stream.output)
    async with threads.stream(**options) as stream:
        with pytest.raises(RuntimeError) as refused:
            await stream.run.respond("good", interrupt_id="nothing")
        server.answers["stream: no question"] = str(refused.value)
    http = server.http
    place = f"/threads/{id_of('streamed')}"
    commands = {
        "nothing": {"method": "nothing"},
        "an id that is none": {"id": "x", "method": "run.start"},
        "no assistant": {"method": "run.start"},
        "an unknown assistant": {"method": "run.start", "params": {"assistant_id": "nobody"}},
        "no interrupt": {"method": "input.respond", "params": {}},
        "an unknown interrupt": {
            "method": "input.respond",
            "params": {"interrupt_id": "x", "response": 1},
        },
        "the tree": {"method": "agent.getTree"},
        "a subscription": {"method": "subscription.subscribe", "params": {"channels": ["values"]}},
    }
    for name, command in commands.items():
        answer = await http.post(f"{place}/commands", json={"id": 1, **command})
        body = answer.json()
        server.answers[f"command: {name}"] = {
            "status": answer.status_code,
            "body": {**body, "message": type(body.get("message")).__name__},
        }
    for name, body in (("no channel", {}), ("an unknown channel", {"channels": ["x"]})):
        answer = await http.post(f"{place}/stream/events", json=body)
        server.answers[f"events: {name}"] = answer.status_code


async def sent(stream: Any, end: str) -> AsyncIterator[Any]:
    """Return what is sent of a run, without numbers and times."""
    channels = ("values", "messages", "lifecycle", "input.requested")
    async for event in stream.events:
        if event["method"] in channels:
            assert {*event} == {"type", "event_id", "seq", "method", "params"}
            params = {key: part for key, part in event["params"].items() if key != "timestamp"}
            yield shape({"method": event["method"], "params": params})
        if event["method"] == "lifecycle" and event["params"]["data"]["event"] == end:
            return


async def copied(server: Asked, threads: Any, _: Any) -> None:
    ask = server.ask
    await ask("copy", threads.copy(id_of("a")))
    await ask("copy the missing", threads.copy(MISSING))
    await ask("count with the copy", threads.count(metadata={"user": "u1"}))


async def apart(server: Asked, threads: Any, _: Any) -> None:
    """What changes one of the two only comes last."""
    ask = server.ask
    await ask("write without a graph", threads.update_state(id_of("ttl"), said("z")))
    await ask("create with any id", threads.create(thread_id="any text"))
    bad = [{"updates": [{"values": {}, "as_node": "nobody"}]}]
    await ask(
        "create with bad supersteps",
        threads.create(thread_id=id_of("bad"), graph_id="chat", supersteps=bad),
    )
    await ask("get what was refused", threads.get(id_of("bad")))


async def removed(server: Asked, threads: Any, _: Any) -> None:
    ask = server.ask
    await ask("prune nothing", threads.prune([]))
    await ask("prune", threads.prune([id_of("steps"), MISSING]))
    await ask("prune history", threads.prune([id_of("a")], strategy="keep_latest"))
    await ask("delete", threads.delete(id_of("a")))
    await ask("delete again", threads.delete(id_of("a")))
    await ask("get the deleted", threads.get(id_of("a")))


def differences(theirs: Any, ours: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield each place where two answers differ, with what stands there."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted({*theirs, *ours}):
            there, here = theirs.get(key, "(no key)"), ours.get(key, "(no key)")
            yield from differences(there, here, f"{path}.{key}".lstrip("."))
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for there, here in zip(theirs, ours, strict=True):
            yield from differences(there, here, f"{path}[]")
    elif theirs != ours or type(theirs) is not type(ours):
        yield path, theirs, ours


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[str]:
    directory = Path(shutil.copytree(EXAMPLE, tmp_path / "example"))
    with running(directory, SqliteStore(tmp_path / "theirs.db")) as address:
        yield address


@contextmanager
def our_server(path: Path) -> Iterator[str]:
    graphs = load_graphs([f"chat={EXAMPLE / 'chat.py'}:graph"])
    with SqliteSaver(path) as saver, serving(create_app(saver, graphs)) as address:
        yield address


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[str]:
    with our_server(tmp_path / "ours.db") as address:
        yield address


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="LangGraph's server needs Python 3.11")
async def test_both_servers_answer_alike_but_for_what_is_listed(theirs: str, ours: str) -> None:
    servers = [Asked(address) for address in (theirs, ours)]
    for server in servers:
        await script(server)
        assert server.threads.parameters == parameters(ThreadsClient)
    there, here = (server.answers for server in servers)
    assert list(there) == list(here)
    seen = {
        f"{step} | {path}": (a, b)
        for step in there
        for path, a, b in differences(there[step], here[step])
    }
    unexplained = {
        place: pair
        for place, pair in seen.items()
        if not any(re.fullmatch(pattern, place) for pattern in DIFFERENCES)
    }
    assert unexplained == {}
    stale = [
        pattern
        for pattern in DIFFERENCES
        if not any(re.fullmatch(pattern, place) for place in seen)
    ]
    assert stale == []


@pytest.mark.slow
async def test_the_sync_client_is_answered_as_the_async_one_is(ours: str, tmp_path: Path) -> None:
    """It has the same methods and parameters, and the script calls all of them."""
    assert parameters(SyncThreadsClient) == parameters(ThreadsClient)
    with our_server(tmp_path / "other.db") as other:
        servers = [Asked(ours), Asked(other, is_sync=True)]
        for server in servers:
            await script(server)
            assert server.threads.parameters == parameters(SyncThreadsClient)
    for server in servers:  # the sync client ends its iterator at a question, maybe before it
        del server.answers["stream: question"]
    assert servers[1].answers == servers[0].answers
