"""For an owner there is nobody else: each route answers as if others' threads did not exist.

Requests of one owner are sent to two servers. In one, another owner has threads, runs and forks;
in the other, nobody has. The answers are the same, but for ids and times that are made anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from html import unescape
from itertools import zip_longest
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checking import put
from forkpoint import ThreadCatalog
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.server import create_app
from requesting import Operation, Sent, operations_of, requests_to
from served import Gates, chat, said, serving
from servers import PATIENCE_SECONDS
from stores import Store

OTHER = "somebody else"
OWN, HEAD, OLD, NEW = "<own thread>", "<own head>", "<own old checkpoint>", "<new thread>"
CURSOR = "<cursor of somebody else>"
SECRET = "SECRET"
FEW = 2
"""How many examples of each operation are in every run."""
ENDLESS = [("GET", "/threads/{thread_id}/stream"), ("POST", "/threads/{thread_id}/stream/events")]
FORM = (
    *("thread_id", "checkpoint_id", "new_thread_id", "kind", "input", "answer", "interrupt_id"),
    *("steps", "key"),
)
UUID = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32}|[0-9a-f]{6}…[0-9a-f]{6}"
)
TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(\+00:00|Z)?")


class World:
    """A server over a store, and whoever sends requests to it."""

    def __init__(self, address: str, saver: ForkpointSaver) -> None:
        self.client = httpx.Client(base_url=address, timeout=PATIENCE_SECONDS)
        self._saver = saver
        catalog = ThreadCatalog(saver, owner=OTHER)
        for thread_id in "ab":
            catalog.create(thread_id)
        self._cursor = str(catalog.search(limit=1).next_cursor)  # each store signs its own
        for thread_id in "ab":
            catalog.delete(thread_id)

    def asks(self, who: str, method: str, path: str, body: Any = None) -> Any:
        """Return what somebody gets, who may have it."""
        answer = self.client.request(method, path, json=body, headers={"x-user": who})
        return answer.raise_for_status().json()

    @contextmanager
    def owner(self, who: str) -> Iterator[dict[str, str]]:
        """Let there be an owner with a thread, and give what stands for its parts."""
        catalog = ThreadCatalog(self._saver, owner=who)
        own = f"of {who}"
        catalog.create(own, metadata={"user": "u"})
        old = put(catalog.saver, {"messages": [], "turns": 1}, thread_id=own)
        head = put(catalog.saver, {"messages": [], "turns": 2}, thread_id=own, parent=old)
        ids = [place["configurable"]["checkpoint_id"] for place in (head, old)]
        try:
            yield {OWN: own, HEAD: ids[0], OLD: ids[1], NEW: f"new of {who}", CURSOR: self._cursor}
        finally:
            for thread in list(catalog.walk()):  # by the server, which ends the runs as well
                place = f"/threads/{quote(thread.thread_id, safe='')}"
                answer = self.client.delete(place, headers={"x-user": who})
                if answer.status_code != 404:  # that of a run without a thread ends with it
                    answer.raise_for_status()


@contextmanager
def world(saver: ForkpointSaver, gates: Gates) -> Iterator[World]:
    def authenticate(request: Any) -> str:
        return str(request.headers["x-user"])

    with serving(create_app(saver, {"chat": chat(gates)}, authenticate)) as address:
        made = World(address, saver)
        with made.client:
            yield made


class Others:
    """What somebody else has: threads, forks, tags, a run that ended and one that is going on."""

    def __init__(self, world: World, saver: ForkpointSaver, gates: Gates) -> None:
        self._world = world
        self.threads = ["theirs", "their fork", "their run"]
        catalog = ThreadCatalog(saver, owner=OTHER)
        for thread_id in ("theirs", "their run"):
            catalog.create(thread_id, label=SECRET, tags=["tag"], metadata={"user": "u", SECRET: 1})
        for text in (SECRET, "ask"):
            self.ask("POST", "/threads/theirs/runs/wait", {"input": said(text)})
        self.ask("POST", "/forkpoint/threads/theirs/fork", {"new_thread_id": "their fork"})
        self.run = self.ask("POST", "/threads/their run/runs", {"input": said("wait")})
        gates.entered.acquire()
        runs = [*self.ask("GET", "/threads/theirs/runs"), self.run]
        states = self.ask("POST", "/threads/theirs/history", {"limit": 100})
        self.checkpoints = [state["checkpoint_id"] for state in states]
        self.ids = [run["run_id"] for run in runs] + [states[0]["interrupts"][0]["id"]]
        self.before = self.seen()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        is_run = method == "POST" and not path.startswith("/forkpoint/")
        run = {"assistant_id": "chat"} if is_run else {}
        return self._world.asks(OTHER, method, path, None if body is None else run | body)

    def seen(self) -> Any:
        """Return all that they see of what they have."""
        paths = [
            *(f"/threads/{name}" for name in self.threads),
            *(f"/threads/{name}/runs" for name in self.threads),
            *(f"/threads/{name}/history?limit=100" for name in self.threads),
            *(f"/forkpoint/threads/{name}/{part}" for name in self.threads for part in PARTS),
        ]
        return {path: self.ask("GET", path) for path in paths}, self.ask(
            "POST", "/threads/count", {}
        )

    def words(self, name: str) -> st.SearchStrategy[str]:
        """Return texts that may reach what they have, for what has a name."""
        threads = st.sampled_from([*self.threads, OWN, "nobody"])
        checkpoints = st.sampled_from([*self.checkpoints, HEAD, OLD])
        if name == "new_thread_id":
            return st.sampled_from([NEW, *self.threads])
        if "thread" in name or name in ("ids", "other"):
            return threads
        if name in ("checkpoint_id", "before", "a_checkpoint", "b_checkpoint"):
            return checkpoints
        known: dict[str, list[str]] = {
            "assistant_id": ["chat"],
            "run_id": self.ids,
            "interrupt_id": self.ids,
            "cursor": [CURSOR, ""],
            "checkpoint_ns": ["", "answer"],
            "owner": [OTHER],
            "kind": ["only", "as-it-is", "message", "json"],
            "steps": ["1", "2"],
            "as_node": ["answer"],
            "channel": ["messages", "turns"],
        }
        if name in known:
            return st.sampled_from(known[name])
        some = ["user", "u", "tag", "answer", "values", OTHER, *self.ids]
        return threads | checkpoints | st.sampled_from(some) | st.text(max_size=3)


PARTS = ("lineage", "family", "stats")


def normal(answer: httpx.Response, meant: Mapping[str, str]) -> list[str]:
    """Return an answer without what differs between any two: ids and times that are made anew."""
    numbers: dict[str, str] = {}

    def numbered(match: re.Match[str]) -> str:
        return numbers.setdefault(match[0], f"<id {len(numbers)}>")

    def plain(text: str) -> str:
        for stands, value in meant.items():
            text = text.replace(quote(value), stands).replace(value, stands)
        return TIME.sub("<time>", UUID.sub(numbered, text))

    headers = [
        f"{name}: {value}"
        for name, value in sorted(answer.headers.items())
        if name not in ("date", "content-length")
    ]
    return plain("\n".join([str(answer.status_code), *headers, answer.text])).splitlines()


def is_taken(answer: httpx.Response, thread_ids: list[str]) -> bool:
    """Return whether an answer says that there is a thread of an id, and nothing else.

    Ids are those of one store, so that much is told of others to who wants to make a thread.
    """
    told = [f"there is a thread {thread_id!r} already" for thread_id in thread_ids]
    if answer.url.path.endswith("/commands"):
        is_error = answer.status_code == 200 and answer.json()["type"] == "error"
        return is_error and answer.json()["message"] in [f"409: {each}" for each in told]
    if answer.status_code != 409:
        return False
    if answer.headers["content-type"].startswith("application/json"):
        return answer.json() in [{"detail": each} for each in told]
    return any(each in unescape(answer.text) for each in told)


@pytest.mark.parametrize("examples", [FEW, pytest.param(25, marks=pytest.mark.slow)])
def test_nothing_of_another_owner_is_seen_or_changed(
    examples: int, new_store: Callable[[], Store], gates: Gates
) -> None:
    with ExitStack() as stack:
        savers = [stack.enter_context(new_store().saver()) for _ in range(2)]
        alone, shared = (stack.enter_context(world(saver, gates)) for saver in savers)
        stack.callback(gates.left.release)
        others = Others(shared, savers[1], gates)
        asked = 0
        for operation in operations_of(create_app(savers[0], {"chat": chat()})):
            asked += 1
            check(operation, examples, alone, shared, others)
        assert asked > 55
        assert others.seen() == others.before
        assert others.run["run_id"] in str(others.before)


NAMES = iter(range(10**9))


def check(operation: Operation, examples: int, alone: World, shared: World, others: Others) -> None:
    """Check that an operation answers alike where there are others, and where there are none."""

    def words(name: str) -> st.SearchStrategy[str]:
        return others.words(name)

    requests = requests_to(operation, words, FORM)
    if (operation.method, operation.path) in ENDLESS:
        requests = requests.filter(lambda sent: sent.path["thread_id"] != OWN)

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck), database=None)
    @given(sent=requests)
    def ask(sent: Sent) -> None:
        who = f"me {next(NAMES)}"
        answers = []
        for place in (alone, shared):
            with place.owner(who) as meant:
                answer = sent.to(place.client, meant, **{"x-user": who})
                answers.append((answer, normal(answer, meant)))
        (_, without), (given, with_others) = answers
        assert SECRET not in given.text
        if not is_taken(given, others.threads):
            differing = [pair for pair in zip_longest(without, with_others) if len({*pair}) > 1]
            assert not differing, sent[1:]

    ask()
    if examples > FEW:
        assert others.seen() == others.before, operation.path
