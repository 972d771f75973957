"""Runs of graphs on threads, for as long as this process lives, and what they stream."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence, Set
from contextlib import AsyncExitStack, suppress
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

from langchain_core.messages import BaseMessage, BaseMessageChunk, message_chunk_to_message

from forkpoint.catalog.leases import Lease
from forkpoint.errors import StaleLease, ThreadDeleted
from forkpoint.server import bodies
from forkpoint.server.as_json import as_json
from forkpoint.server.assistants import Assistant
from forkpoint.server.bodies import Json
from forkpoint.server.requests import RequestScope
from forkpoint.server.states import command_of, config_at

EVENTS_KEPT = 10_000
"""How many events of a run are kept, for clients that come back to it."""
RUNS_KEPT = 200
"""How many runs of an owner that have ended can still be asked for."""
MODES = frozenset(
    ("values", "updates", "messages", "messages-tuple", "custom", "checkpoints", "tasks", "debug")
)
IF_BUSY = {"reject": "raise", "enqueue": "wait", "interrupt": "cancel", "rollback": "rollback"}


class Run:
    """A run of a graph on a thread, in a task of its own: it goes on if its client goes.

    Attributes:
        run_id: Its id, which is in the metadata of each checkpoint that it makes.
        status: As LangGraph Platform has it.
        values: The last state that it streamed, with what it waits for.
        error: What it failed with.
    """

    def __init__(
        self, request: RequestScope, thread_id: str, assistant: Assistant, body: bodies.NewRun
    ) -> None:
        self.run_id = str(uuid4())
        self.thread_id = thread_id
        self.owner = request.owner
        self.body = body
        self.status = "pending"
        self.values: Any = None
        self.error: Json | None = None
        self.created_at = self.updated_at = _now()
        self.task: asyncio.Task[None] | None = None
        self._catalog = request.catalog
        self._assistant = assistant
        self._graph = request.graph_named(assistant.graph_id)
        self._events: deque[tuple[int, str, str]] = deque(maxlen=EVENTS_KEPT)
        self._sent = 0
        self._changed = asyncio.Condition()
        self._messages: dict[str, BaseMessage] = {}

    @property
    def is_over(self) -> bool:
        return self.status not in ("pending", "running")

    @property
    def modes(self) -> list[str]:
        asked = self.body.stream_mode or ["values"]
        return [asked] if isinstance(asked, str) else asked

    def shown(self) -> Json:
        """Return the run as clients expect it."""
        return {
            "run_id": self.run_id,
            "thread_id": self.thread_id,
            "assistant_id": self._assistant.assistant_id,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "status": self.status,
            "metadata": self.body.metadata or {},
            "kwargs": {},
            "multitask_strategy": self.body.multitask_strategy or "enqueue",
        }

    async def events(self, after: int = 0) -> AsyncIterator[tuple[int, str, str]]:
        """Return the events with higher numbers, those that come included, to the run's end."""
        while True:
            async with self._changed:
                while self._sent <= after and not self.is_over:
                    await self._changed.wait()
                new = [event for event in self._events if event[0] > after]
                is_over = self.is_over
            for event in new:
                yield event
                after = event[0]
            if is_over and after >= self._sent:
                return

    async def join(self) -> Any:
        """Wait for the run's end, and return its last state, or the error."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.is_over)
        return self.values if self.error is None else {"__error__": self.error}

    async def delete_thread(self) -> None:
        """Delete the thread, which was made for this run alone."""
        await self._catalog.adelete(self.thread_id)

    async def begin(self) -> None:
        """Begin in a task of its own. With the strategy `reject`, the lease is had on return.

        Raises:
            ThreadBusy: Another run is going on, and this one is not to wait, or to end it.
        """
        strategy = self.body.multitask_strategy or "enqueue"
        lease = self._catalog.run(self.thread_id, if_busy=IF_BUSY[strategy])
        stack = AsyncExitStack()
        if strategy == "reject":
            await stack.enter_async_context(lease)
            self.task = asyncio.create_task(self._run(lease, stack))
        else:
            self.task = asyncio.create_task(self._run(lease, stack, is_waiting=True))

    async def _run(self, lease: Lease, stack: AsyncExitStack, *, is_waiting: bool = False) -> None:
        status = "success"
        try:
            async with stack:
                if is_waiting:
                    await stack.enter_async_context(lease)
                await self._set_status("running")
                await self._publish("metadata", {"run_id": self.run_id, "attempt": 1})
                await self._stream(lease)
        except asyncio.CancelledError:
            status = "interrupted"
            self.error = {"error": "UserInterrupt", "message": "the run was cancelled"}
        except (StaleLease, ThreadDeleted) as error:
            status = "interrupted"
            self.error = {"error": type(error).__name__, "message": str(error)}
        except Exception as error:  # noqa: BLE001  # of the graph: the client is told
            status = "error"
            self.error = {"error": type(error).__name__, "message": as_json(str(error))}
        if self.error is not None:
            await self._publish("error", self.error)
        await self._set_status(status)

    async def _stream(self, lease: Lease) -> None:
        body = self.body
        given = command_of(body.command) if body.command else body.input
        wanted = dict.fromkeys(["values", *self.modes])
        modes = ["messages" if mode == "messages-tuple" else mode for mode in wanted]
        stream = self._graph.astream(
            given,
            self._config(lease),
            context=body.context,
            stream_mode=list(dict.fromkeys(modes)),
            subgraphs=True,
            interrupt_before=body.interrupt_before,
            interrupt_after=body.interrupt_after,
            durability=body.durability,
        )
        async for namespace, mode, data in stream:
            if namespace and not body.stream_subgraphs:
                if mode != "messages":  # those of all levels are shown, as the Platform does
                    continue
                namespace = ()
            await self._show(namespace, mode, data)

    def _config(self, lease: Lease) -> Json:
        body = self.body
        given = body.config or {}
        place = body.checkpoint or bodies.CheckpointPlace()
        place = place.model_copy(
            update={"checkpoint_id": body.checkpoint_id or place.checkpoint_id}
        )
        configurable = {
            name: value
            for name, value in (given.get("configurable") or {}).items()
            if not name.startswith("__") and name not in bodies.CheckpointPlace.model_fields
        }
        metadata = {
            **(body.metadata or {}),
            "graph_id": self._assistant.graph_id,
            "assistant_id": self._assistant.assistant_id,
            "run_id": self.run_id,
        }
        config = config_at(self.thread_id, place, {**configurable, **lease.config["configurable"]})
        limit = given.get("recursion_limit")
        limits = {"recursion_limit": limit} if isinstance(limit, int) and limit > 0 else {}
        tags = given.get("tags")
        labels = {"tags": tags} if isinstance(tags, list) else {}
        return {**config, **limits, **labels, "metadata": metadata}

    async def _show(self, namespace: Sequence[str], mode: str, data: Any) -> None:
        name = "|".join([mode, *namespace])
        if mode == "values":
            if not namespace:
                self.values = as_json(data)
            if "values" in self.modes:
                await self._publish(name, as_json(data))
        elif mode != "messages":
            await self._publish(name, as_json(data))
        else:
            if "messages-tuple" in self.modes:
                await self._publish(name, as_json(list(data)))
            if "messages" in self.modes:
                await self._show_message(namespace, *data)

    async def _show_message(self, namespace: Sequence[str], message: Any, metadata: Any) -> None:
        """Show a message as far as it has come: its parts are added up."""
        before = self._messages.get(message.id)
        where = "|".join(["", *namespace])
        if before is None:
            shown_metadata = {message.id: {"metadata": as_json(metadata)}}
            await self._publish(f"messages/metadata{where}", shown_metadata)
        elif isinstance(before, BaseMessageChunk) and isinstance(message, BaseMessageChunk):
            message = before + message
        self._messages[message.id] = message
        is_part = isinstance(message, BaseMessageChunk)
        shown = message_chunk_to_message(message) if is_part else message
        await self._publish(
            f"messages/{'partial' if is_part else 'complete'}{where}", [as_json(shown)]
        )

    async def _publish(self, name: str, data: Any) -> None:
        async with self._changed:
            self._sent += 1
            self._events.append((self._sent, name, json.dumps(data, ensure_ascii=False)))
            self.updated_at = _now()
            self._changed.notify_all()

    async def _set_status(self, status: str) -> None:
        async with self._changed:
            self.status = status
            self.updated_at = _now()
            self._changed.notify_all()


class Runs:
    """The runs of this process: those that go on, and the last ones that ended."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._begun = asyncio.Condition()

    async def start(self, run: Run) -> None:
        """Begin a run, and keep it until others have ended after it.

        Raises:
            ThreadBusy: Another run is going on, and this one is not to wait, or to end it.
        """
        if run.body.multitask_strategy in ("interrupt", "rollback"):
            self.cancel_thread(run.thread_id)
        await run.begin()
        async with self._begun:
            self._runs[run.run_id] = run
            self._begun.notify_all()
        known = self._runs.items()
        ended = [key for key, other in known if other.is_over and other.owner == run.owner]
        for key in ended[:-RUNS_KEPT]:
            del self._runs[key]

    def of_thread(self, request: RequestScope, thread_id: str) -> list[Run]:
        """Return the runs on a thread that the owner began, the newest first."""
        return [
            run
            for run in reversed(self._runs.values())
            if run.thread_id == thread_id and run.owner == request.owner
        ]

    async def follow(self, request: RequestScope, thread_id: str) -> AsyncIterator[Run]:
        """Return the runs on a thread that are going on, and those that begin later, for ever."""
        seen = {run.run_id for run in self.of_thread(request, thread_id) if run.is_over}
        while True:
            async with self._begun:
                while not (new := self._unseen(request, thread_id, seen)):
                    await self._begun.wait()
            for run in new:
                seen.add(run.run_id)
                yield run

    def _unseen(self, request: RequestScope, thread_id: str, seen: Set[str]) -> list[Run]:
        runs = self.of_thread(request, thread_id)
        return [run for run in reversed(runs) if run.run_id not in seen]

    def find(self, request: RequestScope, thread_id: str, run_id: str) -> Run | None:
        """Return a run on a thread, if this process has it, and its owner asks."""
        runs = self.of_thread(request, thread_id)
        return next((run for run in runs if run.run_id == run_id), None)

    def cancel_thread(self, thread_id: str) -> None:
        """Cancel the runs that are going on, on a thread, in this process."""
        for run in self._runs.values():
            if run.thread_id == thread_id and run.status == "running" and run.task is not None:
                run.task.cancel()

    async def end_thread(self, thread_id: str) -> None:
        """Cancel all runs on a thread, in this process: none of them begins any more."""
        runs = [run for run in self._runs.values() if run.thread_id == thread_id]
        waiting = [run.task for run in runs if run.task and run.status == "pending"]
        self.cancel_thread(thread_id)
        await _ended(waiting)

    async def close(self) -> None:
        """Cancel all runs, and wait for their ends."""
        await _ended([run.task for run in self._runs.values() if run.task and not run.is_over])


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel tasks, and wait for their ends."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()
