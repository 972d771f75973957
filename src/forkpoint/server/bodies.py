"""What requests say, and what is answered."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from typing_extensions import Self

Strategy = Literal["delete", "keep_latest"]
MultitaskStrategy = Literal["reject", "enqueue", "interrupt", "rollback"]
RunMode = Literal[
    "values", "updates", "messages", "messages-tuple", "custom", "checkpoints", "tasks", "debug"
]
Status = Literal["idle", "busy", "interrupted", "error"]
SortBy = Literal["thread_id", "status", "created_at", "updated_at", "state_updated_at"]
ThreadField = Literal[
    "thread_id",
    "created_at",
    "updated_at",
    "state_updated_at",
    "metadata",
    "config",
    "status",
    "values",
    "interrupts",
]
RunField = Literal[
    "run_id",
    "thread_id",
    "assistant_id",
    "created_at",
    "updated_at",
    "status",
    "metadata",
    "kwargs",
    "multitask_strategy",
]
Json = dict[str, Any]
Identifier = Annotated[str, Field(min_length=1, max_length=1024)]


def _whole(value: Any) -> Any:
    """Return 1 for 1.0: to JSON they are one number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
"""Comes after the limits of a number, which the description says of it then."""
Minutes = Annotated[float, Field(gt=0, le=1e8)]


def _nothing(value: Any) -> None:
    """Return None for what asks for nothing: null, 0, an empty list.

    Raises:
        ValueError: It asks for something.
    """
    if value:
        raise ValueError("this server does not do that")


NotDone = Annotated[None, BeforeValidator(_nothing)]
"""What the Platform does for a run, and this server does not: a run that asks for it is refused."""


class Body(BaseModel):
    """A request's body. What it has beside these fields is ignored."""

    model_config = ConfigDict(strict=True)


class OwnBody(Body):
    """The body of a request that the Platform does not have. It has these fields and no other."""

    model_config = ConfigDict(extra="forbid")


class TimeToLive(Body):
    """How long after its last activity a thread expires."""

    ttl: Minutes
    strategy: Strategy = "delete"

    @property
    def duration(self) -> timedelta:
        return timedelta(minutes=self.ttl)


class Command(Body):
    """What a run goes on with: an answer, an update of the state, where to go."""

    resume: Any = None
    update: Any = None
    goto: Any = None

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing. LangGraph fails on such a command."""
        return self.resume is None and self.update is None and not self.goto


def _some_command(command: Command | None) -> Command | None:
    """Return a command that says something, or None, as LangGraph's server does."""
    return None if command is None or command.is_empty else command


SomeCommand = Annotated[Command | None, AfterValidator(_some_command)]


class SuperstepUpdate(Body):
    values: Any = None
    command: SomeCommand = None
    as_node: str | None = None


class Superstep(Body):
    updates: list[SuperstepUpdate]


class NewThread(Body):
    thread_id: Identifier | None = None
    metadata: Json | None = None
    if_exists: Literal["raise", "do_nothing"] | None = None
    ttl: TimeToLive | Minutes | None = None
    supersteps: Annotated[list[Superstep], Field(max_length=1000)] | None = None


class ThreadChange(Body):
    metadata: Json | None = None
    ttl: TimeToLive | Minutes | None = None


class ThreadCount(Body):
    metadata: Json | None = None
    values: Json | None = None
    status: Status | None = None


class ThreadSearch(ThreadCount):
    ids: Annotated[list[str], Field(max_length=10_000)] | None = None
    limit: Annotated[int, Field(ge=1, le=1000), WHOLE] = 10
    offset: Annotated[int, Field(ge=0), WHOLE] = 0
    sort_by: SortBy | None = None
    sort_order: Literal["asc", "desc"] | None = None
    select: list[ThreadField] | None = None
    extract: Annotated[dict[str, str], Field(max_length=10)] | None = None


class ThreadPruning(Body):
    thread_ids: Annotated[list[Identifier], Field(max_length=10_000)]
    strategy: Strategy | None = None


class CheckpointPlace(Body):
    """Which checkpoint: of a thread, by its namespace and id."""

    thread_id: str | None = None
    checkpoint_ns: str | None = None
    checkpoint_id: str | None = None
    checkpoint_map: dict[str, str] | None = None

    def at(self, checkpoint_id: str | None) -> Self:
        """Return this place, at the checkpoint that is named beside it, if one is."""
        return self.model_copy(update={"checkpoint_id": checkpoint_id or self.checkpoint_id})


class StateRequest(Body):
    checkpoint: CheckpointPlace
    subgraphs: bool = False
    select: list[str] | None = None


class StateUpdate(Body):
    values: Any = None
    checkpoint: CheckpointPlace | None = None
    checkpoint_id: str | None = None
    as_node: str | None = None


class HistoryRequest(Body):
    limit: Annotated[int, Field(ge=1, le=1000), WHOLE] = 1
    before: str | Json | None = None
    metadata: Json | None = None
    checkpoint: CheckpointPlace | None = None
    select: list[str] | None = None


class Configurable(CheckpointPlace):
    """Where a run begins, if at no newest checkpoint, and anything that its nodes are given."""

    model_config = ConfigDict(extra="allow")

    @property
    def given(self) -> Json:
        """What nodes are given. Who asks, as LangGraph's server says it, no client says."""
        reserved = ("__", "langgraph_auth_")
        extra = self.model_extra or {}
        return {name: value for name, value in extra.items() if not name.startswith(reserved)}


class RunConfig(Body):
    """What a run is configured with. Other keys of a config are not for clients."""

    configurable: Configurable | None = None
    metadata: Json | None = None
    recursion_limit: Annotated[int, Field(ge=1, le=1_000_000), WHOLE] | None = None
    tags: list[str] | None = None


class NewRun(Body):
    assistant_id: str
    thread_id: Any = None
    """Of a run on a thread, its path says it. A run without a thread that has one is refused."""
    input: Any = None
    command: SomeCommand = None
    config: RunConfig | None = None
    context: Json | None = None
    metadata: Json | None = None
    checkpoint: CheckpointPlace | None = None
    checkpoint_id: str | None = None
    stream_mode: str | list[str] | None = None
    stream_subgraphs: bool = False
    stream_resumable: bool = False
    interrupt_before: Literal["*"] | list[str] | None = None
    interrupt_after: Literal["*"] | list[str] | None = None
    multitask_strategy: MultitaskStrategy | None = None
    if_not_exists: Literal["create", "reject"] | None = None
    on_disconnect: Literal["cancel", "continue"] | None = None
    on_completion: Literal["delete", "keep"] | None = None
    durability: Literal["sync", "async", "exit"] | None = None
    checkpoint_during: bool | None = None
    strict_resume: bool | None = None
    after_seconds: NotDone = None
    webhook: NotDone = None
    feedback_keys: NotDone = None
    langsmith_tracer: NotDone = None

    @property
    def place(self) -> CheckpointPlace:
        """The checkpoint where it begins: that of the thread's head, if it names none."""
        configurable = self.config.configurable if self.config is not None else None
        return (self.checkpoint or configurable or CheckpointPlace()).at(self.checkpoint_id)

    @property
    def asked_durability(self) -> str | None:
        """When its checkpoints are stored, if it says so: older clients have another word."""
        if self.durability is None and self.checkpoint_during is not None:
            return "async" if self.checkpoint_during else "exit"
        return self.durability

    @property
    def is_new_turn(self) -> bool:
        """Whether it has an input for the thread's head, without answers to tool calls."""
        given = self.input if self.command is None else self.command.update
        goes_on = self.command is not None and self.command.resume is not None
        if self.place.checkpoint_id or goes_on:
            return False
        return given is not None and not _has_answers(given)


class RunsToCancel(Body):
    """Which runs: these on a thread, or all of a status."""

    thread_id: Identifier | None = None
    run_ids: Annotated[list[str], Field(max_length=10_000)] | None = None
    status: Literal["pending", "running", "all"] | None = None

    @model_validator(mode="after")
    def _are_named_in_one_way(self) -> Self:
        names = [name for name in (self.thread_id, self.run_ids) if name is not None]
        if len(names) != (2 if self.status is None else 0):
            raise ValueError("either a status, or a thread_id and its run_ids")
        return self


class ThreadReply(BaseModel):
    """A thread. With `select`, a search has the chosen fields only."""

    thread_id: str
    created_at: str
    updated_at: str
    metadata: Json
    status: Status
    state_updated_at: str | None = None
    config: Json = {}
    values: Any = None
    interrupts: dict[str, list[Any]] = {}
    error: Json | None = None
    ttl: Json | None = None
    extracted: Json | None = None


class StateReply(BaseModel):
    """A state of a thread, at one checkpoint."""

    values: Any
    next: list[str]
    tasks: list[Json]
    metadata: Json | None
    created_at: str | None
    checkpoint: Json | None
    parent_checkpoint: Json | None
    interrupts: list[Any]
    checkpoint_id: str | None = None
    parent_checkpoint_id: str | None = None


class PruneReply(BaseModel):
    pruned_count: int


class ErrorReply(BaseModel):
    """Why a request was not done."""

    detail: str


def _has_answers(value: Any) -> bool:
    """Return whether there is an answer to a tool call in an input."""
    waiting = [value]  # inputs may be deep, so nothing recurs
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            if "tool_call_id" in part:
                return True
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return False
