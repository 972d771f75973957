"""A server is killed and started again while clients write: what it acknowledged is there."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import uvicorn

from calling import calling_at
from forkpoint import ThreadCatalog
from forkpoint.server import create_app
from processes import fork_server
from served import chat, said
from servers import bound_socket
from stores import Store

ON_THREAD = 12
"""How many updates of a thread there are before its client goes on with a new one."""


def serve(store: Store, port: int) -> None:
    """Serve a store until this process is killed."""
    with store.saver() as saver:
        app = create_app(saver, {"chat": chat()})
        uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


class MortalServer:
    """A server in a process of its own, on the same port after each death."""

    def __init__(self, store: Store, connections: int, port: int) -> None:
        self._port = port
        self._store = store
        self._process: Any = None
        self.is_up = asyncio.Event()
        self.killed: list[int] = []
        limits = httpx.Limits(max_connections=connections + 1)
        self.client = calling_at(f"http://127.0.0.1:{self._port}", limits=limits)

    async def start(self) -> None:
        arguments = (self._store, self._port)
        self._process = fork_server().Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        while not await self._answers():
            assert self._process.is_alive()
            await asyncio.sleep(0.02)
        self.is_up.set()

    async def _answers(self) -> bool:
        try:
            return (await self.client.get("/ok")).status_code == 200
        except httpx.TransportError:
            return False

    async def kill(self) -> None:
        self.is_up.clear()
        self._process.kill()
        await asyncio.to_thread(self._process.join)
        self.killed.append(self._process.pid)


class Clients:
    """Clients that write on threads of their own, and remember what was acknowledged."""

    def __init__(self, server: MortalServer, goes_on: Callable[[int], bool]) -> None:
        self._server = server
        self._goes_on = goes_on
        self.acknowledged: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        self.answers: Counter[Any] = Counter()
        self._progress = asyncio.Condition()

    @property
    def count(self) -> int:
        return sum(map(len, self.acknowledged.values()))

    async def reach(self, count: int) -> None:
        """Wait until so many updates are acknowledged."""
        async with self._progress:
            await self._progress.wait_for(lambda: self.count >= count)

    async def write(self, number: int) -> None:
        """Be one of the clients."""
        updates, thread_id = 0, ""
        while self._goes_on(updates):
            if not thread_id or updates % ON_THREAD == 0:
                thread_id = f"{number} from {updates}"
                new = {"thread_id": thread_id, "if_exists": "do_nothing"}
                await self._send(thread_id, ("thread", thread_id), "POST", "/threads", new)
            mark = f"{number}-{updates}"
            kind, method, path, body = UPDATES[(number + updates) % len(UPDATES)](mark)
            updates += 1
            place = f"/threads/{quote(thread_id)}{path}"
            if not await self._send(thread_id, (kind, mark), method, place, body):
                thread_id = ""  # a run that was killed has its lease, for a while

    async def _send(
        self, thread_id: str, update: tuple[str, str], method: str, path: str, body: Any
    ) -> bool:
        """Send an update until it is answered; return whether it is acknowledged."""
        while True:
            await self._server.is_up.wait()
            try:
                answer = await self._server.client.request(method, path, json=body)
            except httpx.TransportError as error:
                self.answers[type(error).__name__] += 1
                await asyncio.sleep(0.01)
                continue
            self.answers[answer.status_code] += 1
            if answer.status_code == 409:
                return False
            assert answer.status_code == 200, answer.text
            assert "__error__" not in answer.json(), answer.text
            async with self._progress:
                self.acknowledged[thread_id].append(update)
                self._progress.notify_all()
            return True


def describes(mark: str) -> tuple[str, str, str, Any]:
    return "metadata", "PATCH", "", {"metadata": {mark: 1}}


def updates_state(mark: str) -> tuple[str, str, str, Any]:
    message = {"role": "user", "content": mark, "id": mark}
    return "message", "POST", "/state", {"values": {"messages": [message]}, "as_node": "answer"}


def runs(mark: str) -> tuple[str, str, str, Any]:
    run = {"assistant_id": "chat", "input": said(mark), "multitask_strategy": "reject"}
    return "message", "POST", "/runs/wait", run


UPDATES = (describes, updates_state, runs)


async def kill_again_and_again(
    server: MortalServer, clients: Clients, every: int, writing: list[asyncio.Task[None]]
) -> None:
    """Kill the server, and start it again, after so many updates each time."""
    while not all(task.done() for task in writing):
        reached = asyncio.create_task(clients.reach(clients.count + every))
        await asyncio.wait([reached, *writing], return_when=asyncio.FIRST_COMPLETED)
        if not reached.done():
            reached.cancel()
            await asyncio.wait(writing)
            continue
        await server.kill()
        await server.start()


def check(store: Store, clients: Clients) -> None:
    """Check that all is stored that was acknowledged."""
    with store.saver() as saver:
        catalog = ThreadCatalog(saver)
        for thread_id, updates in clients.acknowledged.items():
            thread = catalog.get(thread_id)
            assert thread is not None, thread_id
            stored = saver.get_tuple({"configurable": {"thread_id": thread_id}})
            values = stored.checkpoint["channel_values"] if stored else {}
            there = {
                "thread": {thread_id},
                "metadata": set(thread.metadata),
                "message": {str(message.content) for message in values.get("messages", [])},
            }
            lost = [mark for kind, mark in updates if mark not in there[kind]]
            assert not lost, thread_id
        assert store.problems(saver, after_crash=True) == []


@pytest.mark.parametrize(
    ("number", "updates", "seconds", "every"),
    [(12, 3, None, 20), pytest.param(50, None, 60, 400, marks=pytest.mark.slow)],
)
async def test_what_is_acknowledged_survives_the_server(
    number: int, updates: int | None, seconds: float | None, every: int, store: Store
) -> None:
    reserved = bound_socket()
    server = MortalServer(store, number, reserved.getsockname()[1])
    async with server.client:
        await server.start()
        end = time.monotonic() + (seconds or 0)
        clients = Clients(
            server, lambda count: count < updates if updates else time.monotonic() < end
        )
        writing = [asyncio.create_task(clients.write(client)) for client in range(number)]
        await kill_again_and_again(server, clients, every, writing)
        await asyncio.gather(*writing)
        await server.kill()
    reserved.close()
    for process in server.killed:
        store.await_end_of(process)
    print(f"{clients.count} acknowledged, {len(server.killed)} kills, {dict(clients.answers)}")
    assert len(server.killed) >= 2
    assert {kind for marks in clients.acknowledged.values() for kind, _ in marks} == {
        "thread",
        "metadata",
        "message",
    }
    check(store, clients)
