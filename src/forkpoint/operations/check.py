"""Checking a store: every record, row and chunk against its checksums, and against each other.

Each thread is checked in turns, between which others write. What they do in the middle of it may
look like damage, so damage counts if it is found twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from forkpoint import inputs
from forkpoint.encoding.codec import Codec
from forkpoint.encoding.entries import split_refs
from forkpoint.encoding.hashing import family_salt
from forkpoint.errors import CorruptChunk, other_encryption
from forkpoint.filters import thread_terms
from forkpoint.langgraph_rules import rebuilt_channels
from forkpoint.operations.context import Context
from forkpoint.operations.gc import read_all
from forkpoint.operations.listing import following_page
from forkpoint.operations.turns import Turns, Work, in_turns
from forkpoint.results import CheckReport, Problem, ProblemKind
from forkpoint.runtime.steps import Steps
from forkpoint.storage.plan import Place
from forkpoint.storage.queries import CheckpointQuery, Condition, ThreadQuery
from forkpoint.storage.receipts import RECEIPT, is_receipt
from forkpoint.storage.record_checksums import check_record
from forkpoint.storage.row_checksums import (
    complete_writes,
    metadata_of,
    open_checkpoint,
    open_write,
)
from forkpoint.storage.rows import (
    CheckpointRow,
    FamilyMember,
    StoredCheckpoint,
    ThreadRef,
    ThreadRow,
    WriteRow,
)

CheckProgress = Callable[[CheckReport], object]
"""Is called with what was found so far."""

_THREADS_AT_ONCE = 100
_ROWS_AT_ONCE = 50
_CHUNKS_AT_ONCE = 200
_ATTEMPTS = 3
_MADE_AT_ONCE = 1000  # threads that have one time, as those have that were imported together


def check(context: Context, on_progress: CheckProgress) -> Steps[CheckReport]:
    """Check all threads, and return what is not as it was written.

    Raises:
        EncryptionMismatch: The store is encrypted, and not with the key of the saver.
    """
    hashing = context.prepare().hashing
    if hashing.secret is None:
        raise other_encryption("the store", hashing.is_encrypted)
    report = CheckReport()
    families: dict[Any, _Family] = {}
    after: Any = None
    while True:
        with context.storage.reading() as session:
            rows = session.search.larger_than(-1, after, _THREADS_AT_ONCE)
        for row in rows:
            found = yield from _checked_thread(context, row, families)
            if not found.threads and _is_lost(context, row, after):
                found = _of_record(row.thread, "it is not found by its id", "record")
            report = report.plus(found)
            after = row.thread.key
        on_progress(report)
        if len(rows) < _THREADS_AT_ONCE:
            return report


def _checked_thread(
    context: Context, row: ThreadRow, families: dict[Any, _Family]
) -> Steps[CheckReport]:
    """Check a thread, again if something is wrong with it, as others may have changed it."""
    try:
        check_record(context.codec.hashing, row)
    except CorruptChunk as error:
        return _of_record(row.thread, error, "record")
    before: CheckReport | None = None
    for _ in range(_ATTEMPTS):
        family = row.thread.family
        if before is not None or family not in families:
            families.clear()  # one family at a time is enough: its threads come together as a rule
            read_family = partial(_check_family, context.codec, family)
            families[family] = yield from in_turns(context.storage, read_family, only_reads=True)
        work = partial(_check_thread, context, row.thread, families[family])
        found = yield from in_turns(context.storage, work, only_reads=True)
        if not found.problems and not _is_listed(context, row.thread.thread_id):
            unlisted = _of_record(row.thread, "searches do not find it", "index")
            found = found.plus(replace(unlisted, threads=0))
        if not found.problems or (before is not None and before.problems == found.problems):
            return found
        before = found
        with context.storage.reading() as session:
            present = session.records.get(row.thread.thread_id)
        if present is None or present.thread.key != row.thread.key:
            return CheckReport()
        row = present
    assert before is not None
    return before


def _is_lost(context: Context, row: ThreadRow, previous: Any) -> bool:
    """Return whether a thread is there, but not under its id.

    Args:
        context: The store.
        row: The thread.
        previous: The key of the thread before it.
    """
    with context.storage.reading() as session:
        named = session.records.get(row.thread.thread_id)
        if named is not None and named.thread.key == row.thread.key:
            return False
        present = session.search.larger_than(-1, previous, 1)
    return [other.thread.key for other in present] == [row.thread.key]


def _of_record(thread: ThreadRef, reason: object, kind: ProblemKind) -> CheckReport:
    return CheckReport(1, problems=(Problem(thread.thread_id, None, None, str(reason), kind),))


def _is_listed(context: Context, thread_id: str) -> bool:
    """Return whether a search finds a thread by all that it can be found by."""
    with context.storage.writing() as session:  # a search first lists what changed
        row = session.records.get(thread_id)
        if row is None:
            return True
        described = row.described
        terms = thread_terms(
            row.thread.owner,
            described.label,
            described.tags,
            described.metadata,
            row.source_thread_id,
        )
        # By when it was made: by its id it would be found without the index.
        made = [Condition("created_at", ">=", row.created_at)]
        made.append(Condition("created_at", "<", row.created_at + 1))
        query = ThreadQuery(context.owner, terms, conditions=made, limit=_MADE_AT_ONCE)
        page = session.search.page(query).rows
        return any(other is not None and other.thread.key == row.thread.key for other in page)


class _Family(NamedTuple):
    """The chunks of a family.

    Attributes:
        salt: What the salts of all its threads begin with.
        whole: Whether a chunk that can be read leads to nothing that is damaged or missing.
        damaged: Why a chunk cannot be read.
    """

    salt: bytes
    whole: Mapping[bytes, bool]
    damaged: Mapping[bytes, str]

    def problem_of(self, refs: bytes) -> str | None:
        """Return why the chunks of a row are not all there, or None."""
        for digest in split_refs(refs):
            if not self.whole.get(digest, False):
                reason = self.damaged.get(digest)
                return reason or f"chunk {digest.hex()}, or one that it leads to, is missing"
        return None


def _check_family(root: Codec, family: Any, turns: Turns) -> Work[_Family]:
    """Verify each chunk of a family."""
    salt = _salt_of(turns.session.threads.family(family), family)
    codec = root.of_salt(salt)
    links: dict[bytes, list[bytes]] = {}
    damaged: dict[bytes, str] = {}
    waiting: list[bytes] = []
    yield from read_all(
        turns, lambda after: turns.session.collections.digests(family, after), waiting.extend
    )
    for start in range(0, len(waiting), _CHUNKS_AT_ONCE):
        batch = waiting[start : start + _CHUNKS_AT_ONCE]
        for digest, chunk in turns.session.chunks.get(family, batch, follow=False).items():
            try:
                refs, _ = codec.open_chunk(digest, chunk)
            except CorruptChunk as error:
                damaged[digest] = str(error)
            else:
                links[digest] = split_refs(refs)
        yield
    return _Family(salt, _whole(links), damaged)


def _salt_of(members: Sequence[FamilyMember], family: Any) -> bytes:
    """Return what the salts of a family begin with: that of its first thread, if it is there."""
    salts = Counter(family_salt(member.salt) for member in members)
    first = next((member for member in members if member.key == family), None)
    if first is not None:
        return family_salt(first.salt)
    return salts.most_common(1)[0][0] if salts else b""


def _whole(links: Mapping[bytes, list[bytes]]) -> dict[bytes, bool]:
    """Return for each chunk whether all that it leads to is there."""
    whole: dict[bytes, bool] = {}
    for root in links:
        path = [root]
        while path:
            digest = path[-1]
            below = links.get(digest)
            if below is None or digest in whole:
                whole.setdefault(digest, below is not None)
                path.pop()
                continue
            unknown = [child for child in below if child not in whole]
            if unknown and not set(unknown) & set(path):
                path.extend(unknown)
            else:
                whole[digest] = not unknown and all(whole[child] for child in below)
    return whole


class _ThreadCheck:
    """What is known of a thread so far."""

    def __init__(self, context: Context, thread: ThreadRef, family: _Family) -> None:
        self.thread = thread
        self.codec = context.codec_of(thread)
        self.problems: list[Problem] = []
        self.visible = self.checkpoints = self.writes = 0
        self._family = family
        self._stored: dict[Place, frozenset[str]] = {}
        self._broken: dict[Place, frozenset[str]] = {}
        """The channels that cannot be rebuilt at a checkpoint."""
        self._unreadable_writes: dict[Place, frozenset[str]] = {}

    def note(
        self,
        reason: object,
        row: CheckpointRow | None = None,
        kind: ProblemKind = "checkpoint",
    ) -> None:
        namespace = None if row is None else row.checkpoint_ns
        checkpoint_id = None if row is None else row.checkpoint_id
        self.problems.append(
            Problem(self.thread.thread_id, namespace, checkpoint_id, str(reason), kind)
        )

    def take(self, stored: StoredCheckpoint) -> None:
        """Check a checkpoint and its writes. Its parent has been taken, if it is there."""
        row = stored.row
        self.checkpoints += 1
        self.visible += not row.hidden
        place = row.checkpoint_ns, row.checkpoint_id
        try:
            body, manifest = open_checkpoint(self.codec, row)
            metadata = metadata_of(row)
            if row.run_id not in (None, inputs.run_id(metadata)):
                raise CorruptChunk("the run of the checkpoint is not that which was written")
            if (reason := self._family.problem_of(row.refs)) is not None:
                raise CorruptChunk(reason)
        except CorruptChunk as error:
            self.note(error, row)
        else:
            self._stored[place] = frozenset(manifest)
            rebuilt = rebuilt_channels(metadata, body.get("channel_versions", {}), manifest)
            self._check_rebuilt(row, rebuilt)
        self._check_writes(stored)

    def _check_rebuilt(self, row: CheckpointRow, channels: Iterable[str]) -> None:
        """Check that the channels can be rebuilt that a checkpoint does not store.

        A hidden one may be kept for some of its channels only: what cannot be rebuilt of the others
        matters where a checkpoint that is seen needs them.
        """
        parent = row.parent_checkpoint_id
        if parent is None:
            return
        above = row.checkpoint_ns, parent
        stored = self._stored.get(above)
        missing = frozenset(
            channel
            for channel in channels
            if stored is None
            or channel in self._unreadable_writes.get(above, ())
            or (channel not in stored and channel in self._broken.get(above, ()))
        )
        if missing:
            self._broken[row.checkpoint_ns, row.checkpoint_id] = missing
        if missing and not row.hidden:
            self.note(f"the channels {sorted(missing)} cannot be rebuilt from {parent!r}", row)

    def _check_writes(self, stored: StoredCheckpoint) -> None:
        row = stored.row
        unreadable: set[str] = set()
        try:
            writes = complete_writes(self.codec, stored.writes)
        except CorruptChunk as error:
            self.note(error, row, "write")
            writes = [write for write in stored.writes if not is_receipt(write.idx)]
        self.writes += len(writes)
        for write in writes:
            try:
                open_write(self.codec, write)
                if (reason := self._family.problem_of(write.refs)) is not None:
                    raise CorruptChunk(reason)
            except CorruptChunk as error:
                unreadable.add(write.channel)
                self.note(error, row, "write")
        if unreadable:
            self._unreadable_writes[row.checkpoint_ns, row.checkpoint_id] = frozenset(unreadable)
        for receipt in stored.writes:
            if receipt.idx == RECEIPT and row.hidden:
                self.note("it is hidden, and has the receipt of one that is seen", row, "write")
            elif receipt.idx == RECEIPT and receipt.content:
                self._check_preview(receipt)

    def _check_preview(self, receipt: WriteRow) -> None:
        """Check what is shown of a checkpoint, which can be read without it."""
        try:
            open_write(self.codec, receipt)
        except CorruptChunk:
            of = f"checkpoint {receipt.checkpoint_id!r}"
            self.note(f"what is shown of {of} is not what was written", kind="write")


def _check_thread(
    context: Context, thread: ThreadRef, family: _Family, turns: Turns
) -> Work[CheckReport]:
    record = turns.session.records.get(thread.thread_id)
    if record is None or record.thread.key != thread.key:
        return CheckReport()  # it was deleted, or is provisional
    try:
        check_record(context.codec.hashing, record)
        if family_salt(record.thread.salt) != family.salt:
            raise CorruptChunk("it is of another family than its record says")
        check = _ThreadCheck(context, record.thread, family)
    except CorruptChunk as error:
        return _of_record(thread, error, "record")
    namespaces: set[str] = {""}
    try:  # a row whose fields are of other types than was written cannot even be read
        yield from read_all(
            turns,
            lambda after: turns.session.checkpoints.batch(record.thread, after, with_content=False),
            lambda rows: namespaces.update(row.checkpoint_ns for row in rows),
        )
    except CorruptChunk as error:
        check.note(error)
    for namespace in sorted(namespaces):
        try:
            for page in _pages(turns, record.thread, namespace):
                for stored in page:
                    check.take(stored)
                yield
        except CorruptChunk as error:
            check.note(error)
    present = turns.session.records.get(thread.thread_id)
    if present == record and record.checkpoint_count != check.visible and not check.problems:
        counted = record.checkpoint_count
        check.note(
            f"its record counts {counted} checkpoints, and it has {check.visible}", kind="count"
        )
    return CheckReport(1, check.checkpoints, check.writes, tuple(check.problems))


def _pages(turns: Turns, thread: ThreadRef, namespace: str) -> Iterator[list[StoredCheckpoint]]:
    """Read the checkpoints of a namespace, oldest first, hidden ones and lost ones too."""
    query: CheckpointQuery | None = CheckpointQuery(
        thread.thread_id,
        namespace,
        None,
        None,
        None,
        None,
        _ROWS_AT_ONCE,
        oldest_first=True,
        with_hidden=True,
    )
    while query is not None:
        page = turns.session.checkpoints.page(query)
        yield page
        query = following_page(query, page)
