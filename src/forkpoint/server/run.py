"""A run of a graph on a thread, and what it streams."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timezone
from typing import Any, NamedTuple
from uuid import uuid4

from langchain_core._api import LangChainBetaWarning

from forkpoint.catalog.leases import Lease
from forkpoint.catalog.threads import PendingInterrupt
from forkpoint.errors import (
    ForkpointError,
    StaleLease,
    ThreadBusy,
    ThreadDeleted,
    ThreadNotFound,
)
from forkpoint.runtime.runner import completed
from forkpoint.server import bodies
from forkpoint.server.as_json import as_json, without_internals
from forkpoint.server.assistants import Assistant
from forkpoint.server.bodies import Json
from forkpoint.server.failures import message_of
from forkpoint.server.log import Log
from forkpoint.server.message_parts import MessageParts
from forkpoint.server.protocol import AllModes, Event, events_of
from forkpoint.server.requests import RequestScope, release
from forkpoint.server.run_arguments import config_of, input_of, options_of
from forkpoint.server.states import check_checkpoint
from forkpoint.server.thread_streams import ThreadStreams, as_text

_PATIENCE_SECONDS = 5
"""How long a run waits for the end of those that it interrupts. Then it takes over their lease."""
IF_BUSY = {"reject": "raise", "enqueue": "wait", "interrupt": "cancel", "rollback": "rollback"}


class RunOptions(NamedTuple):
    """What is different about a run."""

    is_temporary: bool = False
    """Whether its thread is made for it alone, and deleted when it ends."""
    sends_events: bool = False
    """Whether a command began it: then it sends the events of the streaming protocol."""
    answers: Callable[[PendingInterrupt], bool] | None = None
    """Which questions its input is the answer to, if the thread waits for one when it begins."""


class Run:
    """A run of a graph on a thread, in a task of its own: it goes on if its client goes.

    Attributes:
        run_id: Its id, which is in the metadata of each checkpoint that it makes.
        status: As LangGraph Platform has it.
        values: The last state that it streamed, with what it waits for.
        error: What it failed with.
        asked: The ids of the interrupts that clients were asked for an answer to.
        is_cancelled: Whether it was told to end.
        holder: Who the lease of its thread names, if it is this run that has it.
    """

    def __init__(
        self,
        request: RequestScope,
        thread_id: str,
        assistant: Assistant,
        body: bodies.NewRun,
        options: RunOptions,
    ) -> None:
        self.run_id = str(uuid4())
        self.thread_id = thread_id
        self.owner = request.owner
        self.body = body
        self.status = "pending"
        self.values: Any = None
        self.error: Json | None = None
        self.asked: set[str] = set()
        self.is_cancelled = False
        self.holder: str | None = None
        self.created_at = self.updated_at = _now()
        self._catalog = request.catalog
        self._assistant = assistant
        self._graph = request.graph_named(assistant.graph_id)
        self._options = options
        self._parts: Log[tuple[str, str]] = Log()
        self._streams = ThreadStreams()
        self._turn: asyncio.Lock
        self._task: asyncio.Task[None] | None = None
        self._has_begun = False
        self._messages = MessageParts()
        self._waiting: dict[Any, Json] = {}
        self._state_characters = 0

    @property
    def is_over(self) -> bool:
        return self.status not in ("pending", "running")

    @property
    def characters(self) -> int:
        """How much text is kept of it: what it streamed, and its last state."""
        return self._parts.characters + self._state_characters

    @property
    def ends_with_client(self) -> bool:
        """Whether a client that began the run, and goes, takes it along."""
        return self.body.on_disconnect == "cancel"

    @property
    def _strategy(self) -> bodies.MultitaskStrategy:
        return self.body.multitask_strategy or "enqueue"

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
            "multitask_strategy": self._strategy,
        }

    async def parts(self, after: int = 0) -> AsyncIterator[tuple[int, str, str]]:
        """Return what it streams after a number, what comes later included, to the run's end."""
        async for number, (name, data) in self._parts.follow(after):
            yield number, name, data

    async def join(self) -> Any:
        """Wait for the run's end, and return its last state, or the error."""
        await self._parts.ended()
        return self.values if self.error is None else {"__error__": self.error}

    async def begin(
        self, streams: ThreadStreams, others: Sequence[Run], turn: asyncio.Lock
    ) -> None:
        """Begin in a task of its own. On return the lease is had, unless the run waits for it.

        Args:
            streams: Where it sends what it streams.
            turn: Held by those who begin, or take over the lease, on the thread.
            others: The runs on the thread, in this process, that came before and are not over.

        Raises:
            ThreadBusy: Another run is going on, and this one is not to wait, or to end it.
            ThreadNotFound: The thread was deleted meanwhile.
        """
        self._streams, self._turn = streams, turn
        strategy = self._strategy
        if strategy == "reject" and not all(other.is_cancelled for other in others):
            raise ThreadBusy(f"thread {self.thread_id!r} is busy: another run came before")
        # Whoever deletes the thread before the run has the lease, comes first.
        lease = self._catalog.run(self.thread_id, if_busy=IF_BUSY[strategy], must_exist=True)
        self.holder = lease.holder
        streams.begin(self.run_id)
        try:
            async with AsyncExitStack() as stack:
                if strategy == "enqueue":  # in the order in which they come
                    await lease.aask()
                    stack.push_async_exit(lease)
                else:
                    await self._replace(others, lease, stack)
                kept = stack.pop_all()
        except BaseException as error:  # who knows of it already waits for its end
            self.error, self.status = _told(error), "error"
            streams.finish(self.run_id)
            self._parts.end()
            raise
        self._task = asyncio.create_task(self._run(lease, kept, others))

    async def _replace(self, others: Sequence[Run], lease: Lease, stack: AsyncExitStack) -> None:
        """Begin the lease, and end the runs that this one is to end."""
        strategy = self._strategy
        if strategy == "interrupt":  # they store first what they have done
            await end(others)
        lease.answers_calls = False  # but as the input has it, below
        await stack.enter_async_context(lease)
        if strategy == "rollback":  # had they ended before, there would be nothing to take back
            await end(others)
        if strategy == "interrupt" and self.body.is_new_turn:
            await lease.aanswer_tool_calls()

    def cancel(self) -> None:
        """End the run as soon as may be, whether it goes on, waits, or is just about to begin."""
        self.is_cancelled = True
        if self._has_begun and self._task is not None:  # else the task would end without a word
            self._task.cancel()

    async def ended(self, seconds: float | None = None) -> None:
        """Wait until nothing of the run goes on, or so long at most."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=seconds)

    async def _run(self, lease: Lease, stack: AsyncExitStack, others: Sequence[Run]) -> None:
        self._has_begun = True
        status = await self._status_after(lease, stack, others)
        is_deleted = False
        if self._options.is_temporary:
            failed = await self._delete_thread()
            is_deleted, status = failed is None, failed or status
        if self.error is not None:
            self._publish("error", self.error)
        if self._options.sends_events:
            self._send_end()
        self.status, self.updated_at = status, _now()
        done = {"status": "run_done", "run_id": self.run_id}
        self._streams.publish("metadata", as_text(done))
        self._streams.finish(self.run_id)
        if is_deleted:
            self._streams.end()
        self._parts.end()
        self._forget_input()

    def _forget_input(self) -> None:
        """Keep no more than is asked for of a run that has ended."""
        given = ("input", "command", "config", "context")
        self.body = self.body.model_copy(update=dict.fromkeys(given))
        self._messages.clear()
        if "values" not in self.modes:
            self._state_characters = len(as_text(self.values))

    async def _status_after(
        self, lease: Lease, stack: AsyncExitStack, others: Sequence[Run]
    ) -> str:
        """Run the graph, and return how that ended."""
        try:
            try:
                await self._run_graph(lease, stack, others)
                async with self._turn:  # what is rolled back meanwhile, does not succeed
                    await release(stack, self.thread_id)
            finally:
                await release(stack, self.thread_id)
        except asyncio.CancelledError:
            self.error = {"error": "UserInterrupt", "message": "the run was cancelled"}
            return "interrupted"
        except (StaleLease, ThreadDeleted, ThreadNotFound) as error:
            self.error = _told(error)
            return "interrupted"
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001  # of the graph: the client is told
            self.error = _told(error)
            return "error"
        return "success"

    async def _run_graph(self, lease: Lease, stack: AsyncExitStack, others: Sequence[Run]) -> None:
        """Run the graph once the lease has begun.

        Raises:
            CancelledError: The run was told to end.
        """
        if self.is_cancelled:
            raise asyncio.CancelledError
        strategy = self._strategy
        if strategy == "enqueue":
            await stack.enter_async_context(lease)
        if strategy in ("enqueue", "reject"):  # those before say first that they have ended
            running = [other for other in others if other.status == "running"]
            await ended(running, _PATIENCE_SECONDS)
        await self._find_question()
        await check_checkpoint(self._catalog.saver, self.thread_id, self.body.place)
        self.status, self.updated_at = "running", _now()
        self._publish("metadata", {"run_id": self.run_id, "attempt": 1})
        if self._options.sends_events:
            await self._stream_events(lease)
        else:
            await self._stream(lease)
        if self.is_cancelled:  # and the graph has not passed that on
            raise asyncio.CancelledError

    async def _find_question(self) -> None:
        """Have the input be the answer to a question that the thread waits for an answer to."""
        answers, body = self._options.answers, self.body
        if answers is None or body.input is None:
            return
        thread = await self._catalog.aget(self.thread_id)
        if thread is not None and any(answers(pending) for pending in thread.interrupts):
            command = bodies.Command(resume=body.input)
            self.body = body.model_copy(update={"input": None, "command": command})

    async def _delete_thread(self) -> str | None:
        """Delete the thread, and return the status of the run if that fails."""
        try:
            await completed(self._catalog.adelete(self.thread_id))
        except (asyncio.CancelledError, ThreadNotFound):
            pass  # it is gone all the same
        except ForkpointError as error:
            self.error = _told(error)
            return "error"
        return None

    def _send_end(self) -> None:
        """Send how the run ended, as the streaming protocol has it."""
        data: Json = {
            "event": "interrupted" if self._waiting else "completed",
            "graph_name": self._assistant.graph_id,
        }
        if self.error is not None:  # of a run that was cancelled, too: nobody waits any longer
            data.update(event="failed", error=self.error["message"])
        self._streams.add(self.run_id, Event("lifecycle", [], data))

    async def _stream(self, lease: Lease) -> None:
        body = self.body
        modes = dict.fromkeys(["values", *self.modes])
        streamed = ["messages" if mode == "messages-tuple" else mode for mode in modes]
        given, config, options = self._arguments(lease)
        stream = self._graph.astream(
            given, config, stream_mode=list(dict.fromkeys(streamed)), subgraphs=True, **options
        )
        async for namespace, mode, data in stream:
            if namespace and not body.stream_subgraphs:
                if mode != "messages":  # those of all levels are shown, as the Platform does
                    continue
                namespace = ()
            self._show(namespace, mode, data)

    async def _stream_events(self, lease: Lease) -> None:
        self._streams.begin_events(self.run_id, self._assistant.graph_id)
        given, config, options = self._arguments(lease)
        with warnings.catch_warnings():  # nothing else runs meanwhile
            warnings.simplefilter("ignore", LangChainBetaWarning)
            stream = await self._graph.astream_events(
                given, config, version="v3", transformers=[AllModes], **options
            )
        async with stream:
            async for streamed in stream:
                for event in events_of(streamed, self.asked):
                    self._streams.add(self.run_id, event)
                params = streamed["params"]
                if streamed["method"] == "values" and not params["namespace"]:
                    values, waiting = params["data"], list(params.get("interrupts") or ())
                    if waiting:  # what is no mapping is what the graph returns: it does not wait
                        known = values if isinstance(values, Mapping) else {}
                        values = {**known, "__interrupt__": waiting}
                    self._show((), "values", values)

    def _arguments(self, lease: Lease) -> tuple[Any, Any, Json]:
        """Return the input, the config and the options that the graph runs with."""
        config = config_of(self.run_id, self._assistant, self.body, lease.config["configurable"])
        return input_of(self.body), config, options_of(self._graph, self.body)

    def _show(self, namespace: Sequence[str], mode: str, data: Any) -> None:
        name = "|".join([mode, *namespace])
        if mode == "values":
            if not namespace:
                self._keep(as_json(data))
            if "values" in self.modes:
                self._publish(name, as_json(data))
        elif mode in ("checkpoints", "debug"):
            self._publish(name, without_internals(as_json(data)))
        elif mode != "messages":
            self._publish(name, as_json(data))
        else:
            if "messages-tuple" in self.modes:
                self._publish(name, as_json(list(data)))
            if "messages" in self.modes:
                for part in self._messages.shown(*data):
                    self._publish(*part)

    def _keep(self, values: Any) -> None:
        """Keep a state as the last one, with all that the run waits for an answer to.

        Each interrupt comes with a state, and tasks beside it go on with others after that.
        """
        if isinstance(values, dict):
            waiting = values.get("__interrupt__") or ()
            self._waiting.update({interrupt["id"]: interrupt for interrupt in waiting})
            if self._waiting:
                values["__interrupt__"] = list(self._waiting.values())
        self.values = values

    def _publish(self, name: str, data: Any) -> None:
        text = as_text(data)
        self._parts.append((name, text), len(text))
        self._streams.publish(name, text)
        self.updated_at = _now()


async def end(runs: Sequence[Run]) -> None:
    """Cancel runs, and wait for their ends, but not for what goes on regardless.

    At the second time, LangGraph leaves a node that does not pass on that it was cancelled.
    """
    for _ in range(2):
        going_on = [run for run in runs if not run.is_over]
        for run in going_on:
            run.cancel()
        await ended(going_on, _PATIENCE_SECONDS)


async def ended(runs: Sequence[Run], seconds: float | None = None) -> None:
    """Wait for the ends of runs, or so long at most."""
    await asyncio.gather(*(run.ended(seconds) for run in runs))


def _told(error: BaseException) -> Json:
    """Return what a client is told of an error, which may be of any kind."""
    return {"error": type(error).__name__, "message": message_of(error)}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()
