"""A store is served by a command: to this machine, or to those who have a key."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from langgraph.graph import StateGraph

from calling import calling_at
from command_line import forkpoint
from forkpoint import InvalidInput, MissingLibrary, SqliteSaver, ThreadCatalog
from forkpoint.server import create_app
from forkpoint.server.__main__ import main
from forkpoint.server.serving import load_graphs, serve
from processes import environment
from servers import PATIENCE_SECONDS

EXAMPLE = Path(__file__).parents[2] / "examples" / "langgraph_server" / "chat.py"


@pytest.fixture
def store(tmp_path: Path) -> str:
    with SqliteSaver(tmp_path / "threads.db") as saver:
        saver.setup()
    return str(tmp_path / "threads.db")


@contextmanager
def serving(command: Sequence[str], **variables: str) -> Iterator[str]:
    """Run a server as a process, and give its address."""
    with served_by(command, **variables) as (address, _):
        yield address


@contextmanager
def served_by(command: Sequence[str], **variables: str) -> Iterator[tuple[str, Any]]:
    """Run a server as a process, and give its address and the process."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command, "--port", "0"],
        env={**environment(), **variables},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if address := re.search(r"running on (http://\S+)", line):
                break
        assert lines
        assert address is not None, "".join(lines)
        yield address[1], process
    finally:
        process.terminate()
        process.communicate()


def http_client(address: str) -> httpx.Client:
    return httpx.Client(base_url=address, timeout=PATIENCE_SECONDS)


def test_the_command_serves_a_store(store: str) -> None:
    graph = f"chat={EXAMPLE}:graph"
    command = ["forkpoint", "--store", store, "serve", "--graph", graph]
    with serving(command) as address, http_client(address) as http:
        new = {"assistant_id": "chat", "input": {"messages": ["Hello"]}}
        values = http.post("/runs/wait", json=new).json()
        assert values["messages"][-1]["content"] == "You said: Hello"
        assert http.get("/info").json()["flags"]["assistants"]


def test_the_module_serves_owners_by_their_keys(store: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"key": "owner"}))
    command = ["forkpoint.server", "--keys", str(keys), "--host", "127.0.0.1"]
    with served_by(command, FORKPOINT_STORE=store) as (address, process):
        with http_client(address) as http:
            assert http.post("/threads", json={}).status_code == 401
            made = http.post("/threads", json={}, headers={"x-api-key": "key"})
            assert made.status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_SECONDS) == 0
    with SqliteSaver(store) as saver:
        assert saver.for_owner("owner").list(None) is not None


BLOCKING = """
import asyncio
from langgraph.graph import START, StateGraph

async def block(state):
    await asyncio.Event().wait()

builder = StateGraph(dict)
builder.add_node("block", block)
builder.add_edge(START, "block")
graph = builder.compile()
"""


async def test_a_server_that_is_told_to_end_ends_its_runs(store: str, tmp_path: Path) -> None:
    (tmp_path / "blocking.py").write_text(BLOCKING)
    graph = f"blocking={tmp_path / 'blocking.py'}:graph"
    command = ["forkpoint", "--store", store, "serve", "--graph", graph]
    with served_by(command) as (address, process):
        async with calling_at(address) as http:
            await http.post("/threads", json={"thread_id": "t"})
            new = {"assistant_id": "blocking", "input": {"n": 1}}
            waiting = asyncio.create_task(http.post("/threads/t/runs/wait", json=new))
            while (await http.get("/threads/t")).json()["status"] != "busy":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            process.terminate()
            ended = await waiting
        assert ended.json()["__error__"]["error"] == "UserInterrupt"
        assert await asyncio.to_thread(process.wait, PATIENCE_SECONDS) is not None
    with SqliteSaver(store) as saver:
        assert ThreadCatalog(saver).lease("t") is None


async def test_a_mounted_application_ends_its_runs_with_the_one_around_it(store: str) -> None:
    made: dict[str, Any] = {}
    exec(BLOCKING, made)
    with SqliteSaver(store) as saver:
        agents = create_app(saver, {"blocking": made["graph"]})
        outer = FastAPI(lifespan=lambda _: agents.router.lifespan_context(agents))
        outer.mount("/agents", agents)
        http = httpx.AsyncClient(
            transport=httpx.ASGITransport(outer), base_url="http://localhost/agents"
        )
        async with outer.router.lifespan_context(outer), http:
            await http.post("/threads", json={"thread_id": "t"})
            new = {"assistant_id": "blocking", "input": {"n": 1}}
            await http.post("/threads/t/runs", json=new)
            while (await http.get("/threads/t")).json()["status"] != "busy":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert ThreadCatalog(saver).lease("t") is None


def test_other_machines_are_not_served_without_keys(store: str) -> None:
    with SqliteSaver(store) as saver, pytest.raises(InvalidInput, match="needs keys"):
        serve(saver, host="0.0.0.0")


@pytest.mark.parametrize(
    "given", ["chat", "chat=", "=a:b", "chat=nothing:graph", "chat=json:nothing", "chat=no.py:x"]
)
def test_a_graph_that_cannot_be_loaded_is_named(given: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(given)):
        load_graphs([given])


def test_a_module_beside_which_the_command_runs_has_a_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "graphs_here.py").write_text(BLOCKING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])  # as a script has it
    assert list(load_graphs(["chat=graphs_here:graph"])) == ["chat"]


PLANNING = """
from dataclasses import dataclass
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

@dataclass
class Plan:
    step: int = 1

class State(TypedDict, total=False):
    plan: Plan
    is_known: bool

def plan(state):
    return {"plan": Plan(), "is_known": isinstance(state.get("plan"), Plan)}

builder = StateGraph(State)
builder.add_node("plan", plan)
builder.add_edge(START, "plan")
one, other = builder.compile(), builder.compile()
"""


def test_graphs_of_one_file_or_of_two_of_one_name_have_their_own_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "planning", None)
    for directory in "ab":
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "planning.py").write_text(PLANNING)
    places = ("a/planning.py:one", "a/planning.py:other", "b/planning.py:one")
    graphs = load_graphs([f"{place}={tmp_path / place}" for place in places])
    with SqliteSaver(":memory:") as saver:
        for place in places:
            graph = graphs[place].copy({"checkpointer": saver})
            at = {"configurable": {"thread_id": place}}
            runs = [graph.invoke({"is_known": False}, at) for _ in range(2)]
            assert [run["is_known"] for run in runs] == [False, True]


def test_a_graph_that_is_not_compiled_is_refused(store: str) -> None:
    reason = re.escape("graphs['chat'] must be a compiled graph, not StateGraph; call its compile")
    with SqliteSaver(store) as saver, pytest.raises(InvalidInput, match=reason):
        create_app(saver, {"chat": StateGraph(dict)})


def test_it_is_said_what_the_server_needs(monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    for name in [name for name in sys.modules if name.startswith("forkpoint.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    reason = "forkpoint.server needs fastapi: pip install 'forkpoint[server]'"
    with pytest.raises(MissingLibrary, match=re.escape(reason)):
        importlib.import_module("forkpoint.server")
    assert forkpoint("serve", store=store) == (2, "", f"Error: {reason}\n")


@pytest.mark.parametrize("port", ["65536", "-1", "http"])
def test_a_port_that_is_none_is_refused(
    port: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["forkpoint.server", "--store", "x.db", f"--port={port}"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "is no port" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["", "[]", '{"key": 1}', "{", "{}", '{"": "a"}', '{"key": ""}', '{"\\ud800": "a"}']
)
def test_a_file_of_keys_that_is_none_is_refused(content: str, tmp_path: Path, store: str) -> None:
    (tmp_path / "keys.json").write_text(content)
    with SqliteSaver(store) as saver, pytest.raises(InvalidInput):
        serve(saver, keys=tmp_path / "keys.json")


@pytest.mark.parametrize("store", ["", "postgres://x/y", "mongodb://localhost", "file:x"])
def test_a_store_that_is_none_is_refused(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["forkpoint.server", "--store", store])
    with pytest.raises(SystemExit) as ended:
        main()
    assert str(ended.value).startswith("Error: ")
