"""forkpoint as the checkpointer of LangGraph's own server, driven by LangGraph's own client."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langgraph_sdk import get_client

from forkpoint import ThreadCatalog
from forkpoint.langgraph_server import register_threads
from langgraph_servers import EXAMPLE, running
from stores import Store

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="LangGraph's server needs Python 3.11"
)


def said(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of the example, which the server writes its own list of threads into."""
    return Path(shutil.copytree(EXAMPLE, tmp_path / "example"))


@pytest.mark.slow  # `.ci/run` has it, too
@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("new_store", ["sqlite", "mongodb"], indirect=True)
async def test_it_runs_on_forkpoint(
    restarts: bool, directory: Path, new_store: Callable[[], Store]
) -> None:
    """Also for threads that the server does not know, or no longer: it takes seconds to begin."""
    store = new_store()
    with running(directory, store) as address:
        client = get_client(url=address)
        thread_id = (await client.threads.create())["thread_id"]
        await client.runs.wait(thread_id, "chat", input=said("Hello"))
        values = await client.runs.wait(thread_id, "chat", input=said("Well?"))
        assert values["__interrupt__"][0]["value"] == "What do you think?"
        values = await client.runs.wait(thread_id, "chat", command={"resume": "good"})
        assert values["messages"][-1]["content"] == "Then it is good."
        states = await client.threads.get_history(thread_id, limit=50)
        place = states[2]["checkpoint"]
        for before in (place, {"configurable": place}):
            earlier = await client.threads.get_history(thread_id, limit=50, before=before)
            assert earlier == states[3:]
        await client.threads.copy(thread_id)
        copy = next(t for t in await client.threads.search() if t["thread_id"] != thread_id)
        copied = await client.threads.get_history(copy["thread_id"], limit=50)
        assert [state["values"] for state in copied] == [state["values"] for state in states]
        for strategy in ("reject", "enqueue", "interrupt", "rollback"):
            values = await client.runs.wait(
                thread_id, "chat", input=said(strategy), multitask_strategy=strategy
            )
            assert values["messages"][-1]["content"] == f"You said: {strategy}"
        await client.threads.delete(copy["thread_id"])
        with store.saver() as saver:
            assert ThreadCatalog(saver).get(copy["thread_id"]) is None
            kept = ThreadCatalog(saver).get(thread_id)
            assert kept is not None
            assert kept.metadata["graph_id"] == "chat"
            clone = ThreadCatalog(saver).clone(thread_id).thread_id
        await register(address, store, {thread_id}, [clone, thread_id])

    if restarts:
        shutil.rmtree(directory / ".langgraph_api")  # the server forgets all threads
        with running(directory, store) as address:
            await register(address, store, set(), [thread_id, clone])


async def register(address: str, store: Store, known: set[str], stored: list[str]) -> None:
    """Make all threads known to a server, and let the first of them go on there."""
    client = get_client(url=address)

    async def ids() -> set[str]:
        return {thread["thread_id"] for thread in await client.threads.search()}

    assert await ids() == known
    with store.saver() as saver:
        for _ in range(2):
            assert await register_threads(ThreadCatalog(saver), client) == len(stored)
    assert await ids() == set(stored)
    values = await client.runs.wait(stored[0], "chat", input=said("Again"))
    assert len(values["messages"]) == 14
