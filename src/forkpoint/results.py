"""What the saver's methods return, beyond what LangGraph defines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

from langgraph.checkpoint.base import CheckpointTuple

ProblemKind = Literal["checkpoint", "write", "record", "count", "index"]
EdgeKind = Literal["fork", "clone"]
Status = Literal["idle", "busy", "interrupted", "error"]
STATUSES: tuple[Status, ...] = get_args(Status)
OnExpiry = Literal["delete", "keep_latest"]


class NotRead:
    """The type of `NOT_READ`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NOT_READ"

    def __copy__(self) -> NotRead:
        return self

    def __deepcopy__(self, memo: Any) -> NotRead:
        return self

    def __reduce__(self) -> str:
        return "NOT_READ"


NOT_READ = NotRead()
"""Stands for each value in what `history` and `list` return with `values=False`. No checkpoint with
it in the place of a value can be stored."""


@dataclass(frozen=True)
class PurgeReport:
    """What a removal removed.

    Attributes:
        checkpoints: How many checkpoints, those in subgraphs' namespaces included.
        writes: How many writes of theirs.
        chunks: How many chunks that nothing refers to any more. For a saver or catalog of one
            owner, nothing of that owner's.
        bytes: How many bytes those chunks took.
    """

    checkpoints: int
    writes: int
    chunks: int
    bytes: int


@dataclass(frozen=True)
class Problem:
    """Something in a store that is not as it was written.

    Attributes:
        thread_id: The thread.
        checkpoint_ns: The namespace of the checkpoint; None if it concerns the thread's record.
        checkpoint_id: The checkpoint; None if it concerns the thread's record.
        reason: What is wrong.
        kind: `checkpoint` or `write`, where that was changed or lost, or what it leads to; of the
            thread's record: `record`, where that was changed, `count`, where it counts wrong, and
            `index`, where searches do not find it.
    """

    thread_id: str
    checkpoint_ns: str | None
    checkpoint_id: str | None
    reason: str
    kind: ProblemKind = "checkpoint"


@dataclass(frozen=True)
class CheckReport:
    """What a check looked at, and what it found.

    Attributes:
        threads: How many threads.
        checkpoints: How many of their checkpoints, hidden ones included.
        writes: How many writes.
        problems: What is not as it was written, thread by thread.
    """

    threads: int = 0
    checkpoints: int = 0
    writes: int = 0
    problems: Sequence[Problem] = ()

    @property
    def is_clean(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def plus(self, other: CheckReport) -> CheckReport:
        """Return what this check and another one found together."""
        return CheckReport(
            self.threads + other.threads,
            self.checkpoints + other.checkpoints,
            self.writes + other.writes,
            (*self.problems, *other.problems),
        )


@dataclass(frozen=True)
class RepairReport:
    """What a repair did, or would do.

    Attributes:
        check: What was found before it.
        repaired: The problems that are no more.
        left: Those that are left: of the record of a thread it cannot be proved what was right,
            and unreadable checkpoints stay where no file is named for what they have.
    """

    check: CheckReport
    repaired: Sequence[Problem] = ()
    left: Sequence[Problem] = ()


@dataclass(frozen=True)
class RekeyReport:
    """What was encrypted anew, or for the first time, or no longer.

    A content is that of a checkpoint, a write or a chunk.

    Attributes:
        contents: How many contents were looked at. There are two passes at least, if anything was
            encrypted anew, of which the last one shows that nothing is left.
        rewritten: How many were encrypted with another key of the key ring.
        foreign: How many no key of the key ring decrypts, in the last pass: they are damaged. They
            stay as they are.
    """

    contents: int = 0
    rewritten: int = 0
    foreign: int = 0


@dataclass(frozen=True)
class MessageOrigin:
    """Where a message came into the state of a thread.

    Attributes:
        first: The first checkpoint whose state has the message.
        before: The newest checkpoint before it that knows nothing of the message, not even as the
            input of its next step; None if there is none, or none any more.
    """

    first: CheckpointTuple
    before: CheckpointTuple | None


@dataclass(frozen=True)
class LineageEntry:
    """A thread, and the edge by which it was made from another.

    Attributes:
        thread_id: Its id.
        exists: Whether it still exists. The id of one that does not may name another thread now.
        edge: How it was made from its parent; None for the first thread of a family.
        parent_thread_id: The thread that it was made from.
        parent_checkpoint_id: The checkpoint that it was forked from; None for a clone.
        step: The step of that checkpoint, if that is still known.
        forked_from: When that checkpoint was made, if its id tells.
        created_at: When the thread was made.
        checkpoint_count: How many checkpoints it has.
    """

    thread_id: str
    exists: bool
    edge: EdgeKind | None
    parent_thread_id: str | None
    parent_checkpoint_id: str | None
    step: int | None
    forked_from: datetime | None
    created_at: datetime
    checkpoint_count: int


@dataclass(frozen=True)
class FamilyNode:
    """A thread of a family, with the threads that were made from it, oldest first.

    Nothing here recurses: a fork of a fork of a fork can be thousands of levels deep.
    """

    entry: LineageEntry
    children: tuple[FamilyNode, ...] = ()
    is_current: bool = False

    def __iter__(self) -> Iterator[FamilyNode]:
        """Iterate over this thread and all that descend from it, each before its children."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += reversed(node.children)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FamilyNode):
            return NotImplemented
        return self is other or self._flat() == other._flat()

    def __hash__(self) -> int:
        return hash(self._flat())

    def __repr__(self) -> str:
        parts: list[str] = []
        waiting: list[FamilyNode | str] = [self]
        while waiting:
            following = waiting.pop()
            if isinstance(following, str):
                parts.append(following)
                continue
            parts.append(f"FamilyNode(entry={following.entry!r}, children=(")
            waiting.append(f"), is_current={following.is_current!r})")
            between = "," if len(following.children) == 1 else ""
            for child in reversed(following.children):
                waiting += [between, child]
                between = ", "
        return "".join(parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return _family_node, (self._flat(),)

    def _flat(self) -> tuple[_FlatNode, ...]:
        """Return all nodes, each before its children, with how many these are."""
        return tuple((node.entry, node.is_current, len(node.children)) for node in self)


_FlatNode = tuple[LineageEntry, bool, int]


def _family_node(flat: Sequence[_FlatNode]) -> FamilyNode:
    """Return the node that was made flat."""
    made: list[FamilyNode] = []
    for entry, is_current, count in reversed(flat):
        children = tuple(made.pop() for _ in range(count))
        made.append(FamilyNode(entry, children, is_current))
    return made[0]


ChannelStatus = Literal["added", "removed", "changed", "unchanged"]


@dataclass(frozen=True)
class ChannelDiff:
    """How one channel differs between two checkpoints.

    For a list, `added` and `removed` are elements, in order, and `changed` maps the `id` of
    elements that have one, such as messages, to pairs of versions; all three are empty where only
    the order changed. For a dict, they map keys to values, and to pairs of values; the order does
    not count. For any other value, and where the type changed, `before` and `after` are the values.

    Attributes:
        status: Whether the channel is in the second only, in the first only, or in both.
        is_rebuilt: Whether it is a `DeltaChannel` that one of the checkpoints does not store: its
            value is known to the graph only, by `graph.get_state`.
    """

    status: ChannelStatus
    before: Any = None
    after: Any = None
    added: Sequence[Any] | Mapping[Any, Any] = ()
    removed: Sequence[Any] | Mapping[Any, Any] = ()
    changed: Mapping[Any, tuple[Any, Any]] = field(default_factory=dict)
    is_rebuilt: bool = False
