"""MongoDB: puts that are waiting at the same time, sent as one bulk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from bson.objectid import ObjectId

from forkpoint.errors import ForkpointError, InvalidInput
from forkpoint.mongodb.commands import MongoCommands
from forkpoint.mongodb.documents import (
    Document,
    chunk_documents,
    record_of,
)
from forkpoint.mongodb.known_threads import Made
from forkpoint.mongodb.put_size import LARGE, LARGE_CHUNKS, TERM_BYTES, Size
from forkpoint.mongodb.put_statements import (
    Beginning,
    Preparation,
    Role,
    Step,
    entries_of,
    insertions,
    may_insert,
    steps_with_log,
    steps_without_log,
)
from forkpoint.mongodb.session import MongoSession
from forkpoint.mongodb.statements import Outcome, Statement
from forkpoint.mongodb.tail import LOG_SECONDS, Tail
from forkpoint.runtime.group_commit import Relay, Submission
from forkpoint.storage.interface import HistoryChanged, Stale
from forkpoint.storage.rows import PutRequest, ThreadRef
from forkpoint.storage.shared import would_make


class Before(NamedTuple):
    """The state that the earlier puts of the same bulk will leave, and how the bulk is sent."""

    made: dict[str, ThreadRef]
    tails: dict[ObjectId, Tail]
    is_small: bool
    """Whether it is one command, which the server refuses if the store is another one."""


class Attempt(Submission):
    """One attempt to store a put. Its statements are made when it is sent.

    Then all puts to the thread that the saver sent before are done, or go before in the same bulk.

    Args:
        relay: What it is to be stored by.
        session: What is known of threads and their logs.
        prepared: What is to be put.
        size: How large it is.

    Attributes:
        prepared: What is put, with the thread that an earlier put of the bulk has made, if so.
        entries: What of it has a slot of the thread's log, if it goes into that.
        own_tail: Where the saver's own log ended before, if it has one.
        collision: Which of its statements collided with a document that exists, or may have.
        is_repeated: Whether a command before may have stored some of it.
        was_interrupted: Whether it may have been sent before, by somebody who was interrupted.
    """

    def __init__(
        self, relay: Relay[Attempt], session: MongoSession, preparation: Preparation, size: Size
    ) -> None:
        super().__init__(relay, may_wait=preparation.request.row is None)
        self.preparation = preparation
        self.size = size
        self.steps: Sequence[Step] = ()
        self.entries: Sequence[Document] = ()
        self.own_tail: Tail | None = None
        self.collision: Role | None = None
        self.is_repeated = False
        self.was_interrupted = False
        self._has_stored_chunk = False
        self._rows: list[Document] = []
        self._rows_of: ThreadRef | None = None
        if session.logs.keeps_logs:  # now, and not when those before are stored
            self._make_rows(preparation.thread)
        self._original = preparation
        self._session = session
        self._tail: Tail | None = None
        self._tail_before: Tail | None = None

    @property
    def is_settled(self) -> bool:
        return super().is_settled and self.collision is None and not self.is_repeated

    @property
    def value_terms(self) -> int:
        """How many terms of values its thread's record has, or is to have, as far as is known."""
        tail = self._session.logs.tail(self.preparation.thread)
        known = None if tail is None else tail.record.get("value_terms")
        number = len(known) if isinstance(known, list) else 0  # it may be damaged
        return max(number, len(self.preparation.request.value_terms or ()))

    def prepare(self, before: Before) -> None:
        """Make the statements, and add the state after them to `before`."""
        self.collision = self.error = None  # of somebody who was interrupted as he noted it
        preparation = self._with_thread_of(before)
        if preparation is None:
            return
        self.preparation = preparation
        request, thread, *_ = preparation
        logs = self._session.logs
        known = before.tails.get(thread.key) or logs.tail(thread)
        tail = preparation.log_tail(known) if logs.keeps_logs else None
        self.own_tail = known if known is not None and known.began is not None else None
        self.entries, self._tail = (), None
        if tail is not None:
            self._go_on(tail, inserts=before.is_small and not self._has_stored_chunk)
        elif logs.keeps_logs and request.row is not None:
            self.collide("entry")  # what counts goes into a log: one has to look at the thread
        else:
            self.steps = steps_without_log(preparation)
            self._tail = preparation.tail_without_log(known) if logs.keeps_logs else None
        if self._tail is not None:
            before.tails[thread.key] = self._tail

    def _go_on(self, tail: Tail, *, inserts: bool) -> None:
        """Make the steps of a put into a log, which is begun if it is too old or not ours.

        Args:
            tail: Where the log ends.
            inserts: Whether they may be insertions, without a guard.
        """
        request, thread, *_, is_counted, next_epoch = self.preparation
        beginning: Beginning | None = None
        if next_epoch is not None or not tail.is_younger_than(LOG_SECONDS):
            old, tail = tail, tail.begin()
            if next_epoch is not None:
                tail = tail._replace(epoch=next_epoch)
            assert tail.log is not None
            beginning = Beginning(old, tail.log)
        self._make_rows(thread)
        self.entries, self._tail_before = self._rows, tail
        if inserts and beginning is None and may_insert(self.preparation):
            chunks = chunk_documents(thread, request.chunks)
            if chunks:
                tail = tail.take_slot(chunks[0])
            self._tail = tail.follow(request, self.entries, is_counted=is_counted)
            self.steps = insertions(chunks, self.entries)
            self.entries = [*chunks[:1], *self.entries]
        else:
            self._tail = tail.follow(request, self.entries, is_counted=is_counted)
            self.steps = steps_with_log(self.preparation, self.entries, beginning)

    def _make_rows(self, thread: ThreadRef) -> None:
        """Make the documents of the rows for a thread, unless they are made."""
        if thread is not self._rows_of:
            self._rows = entries_of(self.preparation.request, thread)
            self._rows_of = thread

    def _with_thread_of(self, before: Before) -> Preparation | None:
        """Return the preparation, for the thread of its id that another put makes, if one does.

        None if it cannot be put to that thread.
        """
        preparation = self._original
        request, thread, creation, *_ = preparation
        if creation is None:
            return preparation
        known = self._session.known
        made = before.made.setdefault(request.thread_id, known.get(request.thread_id) or thread)
        if made == thread:
            known.made.put(made.key, Made(creation.deletions, request.metadata))
        elif made.owner == request.owner and self._is_of(made, request):
            if made.salt != thread.salt:  # its rows are bound to another thread
                self.fail(Stale())
                return None
            return preparation._replace(thread=made, creation=None)
        return preparation

    def _is_of(self, made: ThreadRef, request: PutRequest) -> bool:
        """Return whether a put would have made a thread as it was made meanwhile."""
        made_with = self._session.known.made.get(made.key)
        return made_with is not None and would_make(
            request, made_with.metadata, lambda: made_with.deletions
        )

    def succeed(self, made: Sequence[bool]) -> None:
        """Note that it is stored, and which of its statements made a document."""
        tail = self._tail
        for step, is_new in zip(self.steps, made, strict=True):
            if step.role == "entry" and not is_new:
                self.collide("row")
                return
        if self.entries and tail is not None and not tail.is_younger_than(2 * LOG_SECONDS):
            self.collide("entry")
            return
        next_epoch = self.preparation.next_epoch
        if next_epoch is not None:
            thread = self.preparation.thread._replace(epoch=next_epoch)
            self.preparation = self.preparation._replace(thread=thread)
        self._session.known.remember(self.preparation.request.thread_id, self.preparation.thread)
        self._session.logs.remember_tail(self.preparation.thread, tail)
        self.done = True

    def meet_chunk(self, number: int) -> None:
        """Note that the chunk of a step is stored already, so that statements are to be sent."""
        tail = self._tail_before
        assert tail is not None
        self._has_stored_chunk = True
        if number > 0:  # the first one is stored
            tail = tail._replace(slot=tail.slot + 1)
        self._session.logs.remember_tail(self.preparation.thread, tail)

    def collide(self, role: Role) -> None:
        """Note that a statement collided with a document, or may have, and which."""
        self.collision = role
        self.fail(None)

    def interrupt(self) -> None:
        """Note that the thread that sent it was interrupted: it is unknown whether it is stored."""
        self._forget_tail()
        self.was_interrupted = True

    def fail(self, error: Exception | None) -> None:
        """Note that it is not stored, and why, if that is an error."""
        self._forget_tail()
        self.error = error
        self.done = True

    def _forget_tail(self) -> None:
        """Forget where the thread's log ends: it may have gone on."""
        self._session.logs.remember_tail(self.preparation.thread, None)


class Relays:
    """Sends puts in batches: small ones, and beside these large ones, which take long to transfer.

    Puts to a thread that has a large put under way come after it. Else both would take the same
    slots of the log, and the large one would be sent twice.

    Args:
        store: Sends a batch.
        moment: For how many seconds writes wait for the checkpoint that follows.

    Attributes:
        small: The relay for small puts.
        large: The relay for large puts, and those that follow one.
    """

    def __init__(self, store: Callable[[Sequence[Attempt]], None], *, moment: float) -> None:
        self.small: Relay[Attempt] = Relay(store, moment=moment)
        self.large: Relay[Attempt] = Relay(store)
        self.renew()

    def renew(self) -> None:
        """In a forked child: the other threads are gone."""
        self.small.renew()
        self.large.renew()
        self._thread_ids: list[str] = []  # with large puts under way

    def is_large(self, thread_id: str, size: Size) -> bool:
        """Return whether a put is large, or comes after a large one."""
        return sum(size) >= LARGE or thread_id in self._thread_ids

    @contextmanager
    def under_way(self, thread_id: str) -> Iterator[None]:
        """Note that a large put to a thread is under way until the end of the context."""
        self._thread_ids.append(thread_id)
        try:
            yield
        finally:
            self._thread_ids.remove(thread_id)


def send(commands: MongoCommands, batch: Sequence[Attempt]) -> None:
    """Send a batch as one bulk. If a put fails, those after it are sent again without it."""
    try:
        was_lost = any(attempt.was_interrupted for attempt in batch)
        while batch:
            is_small = _is_small(batch)  # once: what it depends on is known to other threads, too
            batch = _prepare(commands, batch, is_small)
            outcome = _execute(commands, batch, is_small) if batch else None
            if outcome is None:
                return
            was_lost = was_lost or outcome.is_lost
            for attempt in batch:
                attempt.is_repeated = was_lost or outcome.is_repeated
            batch = _note_outcome(commands, batch, outcome)
    except BaseException:  # an interrupt: nobody knows what was stored
        for attempt in batch:
            if not attempt.done:
                attempt.interrupt()
        raise


def _prepare(
    commands: MongoCommands, batch: Sequence[Attempt], is_small: bool
) -> Sequence[Attempt]:
    """Make the statements of a batch, and return the attempts that are to be sent."""
    before = Before({}, {}, is_small)
    for attempt in batch:
        if attempt.preparation.request.history == commands.history:
            attempt.prepare(before)
        else:
            attempt.fail(HistoryChanged())
    return [attempt for attempt in batch if not attempt.done]


def _execute(commands: MongoCommands, batch: Sequence[Attempt], is_small: bool) -> Outcome | None:
    """Execute a bulk, and return its outcome; None if all its attempts are done."""
    steps = [step for attempt in batch for step in attempt.steps]
    try:
        documents = [step.action for step in steps if not isinstance(step.action, Statement)]
        if is_small and len(documents) == len(steps):
            outcome = commands.insert_once(documents)
        else:
            once = any(attempt.entries for attempt in batch)
            statements = [step.statement for step in steps]
            outcome = commands.bulk(statements, once=once, is_small=is_small)
        if commands.is_same_store(was_named=is_small):
            return outcome
        _take_back(commands, batch)
    except InvalidInput as error:  # nothing was stored; see `checked_size`
        _send_alone(commands, batch, error)
    except ForkpointError as error:
        for attempt in batch:
            attempt.fail(error)
    return None


def _is_small(batch: Sequence[Attempt]) -> bool:
    """Return whether a batch fits into one command."""
    if sum(attempt.size.rows for attempt in batch) >= LARGE:
        return False
    rows = sum(1 + len(attempt.preparation.request.writes) for attempt in batch)
    terms = max(attempt.value_terms for attempt in batch)  # each row in a log has all of them
    chunks = sum(attempt.size.chunks for attempt in batch)
    return chunks + rows * terms * TERM_BYTES < LARGE_CHUNKS


def _note_outcome(
    commands: MongoCommands, batch: Sequence[Attempt], outcome: Outcome
) -> Sequence[Attempt]:
    """Note the outcome of a batch, and return the attempts that are to be sent again."""
    if outcome.is_lost:
        for attempt in batch:
            if attempt.entries:
                attempt.collide("entry")
        return [attempt for attempt in batch if not attempt.entries]
    total = sum(len(attempt.steps) for attempt in batch)
    reached = total if outcome.failed is None else outcome.failed
    if outcome.hits != reached:  # a row was removed before it could be seen
        _send_alone(commands, batch, Stale())
        return ()
    begin = 0
    for number, attempt in enumerate(batch):
        end = begin + len(attempt.steps)
        if reached < end:
            failed = attempt.steps[reached - begin]
            if failed.role == "chunk" and _has_met_chunk(
                commands, attempt, reached - begin, outcome
            ):
                return batch[number:]
            _note_failure(attempt, failed.role, outcome)
            return batch[number + 1 :]
        attempt.succeed(made=[index in outcome.made for index in range(begin, end)])
        begin = end
    return ()


def _has_met_chunk(
    commands: MongoCommands, attempt: Attempt, number: int, outcome: Outcome
) -> bool:
    """Return whether a step failed over a chunk that is there, so that it is to be sent again."""
    step = attempt.steps[number]
    if outcome.error is not None:  # somebody may have damaged its epochs
        match = {"_id": step.statement.match["_id"], "family": attempt.preparation.thread.family}
        damaged = {"epochs": {"$exists": True, "$not": {"$type": "array"}}}
        return commands.update({**match, **damaged}, {"$set": {"epochs": []}})
    if outcome.is_taken or isinstance(step.action, Statement):
        return False  # of a statement: somebody else stored it at the same moment
    attempt.meet_chunk(number)
    return True


def _note_failure(attempt: Attempt, role: Role, outcome: Outcome) -> None:
    """Note that a statement of a put failed."""
    if outcome.error is not None:
        attempt.fail(outcome.error)
    elif outcome.is_taken:
        attempt.collide("entry")
    else:
        attempt.collide("row" if role == "entry" else role)


def _take_back(commands: MongoCommands, batch: Sequence[Attempt]) -> None:
    """Fail a batch that was sent to a store that may be another one, so that it is put again.

    What it stored there and does not belong there is removed. The rest is stored again.
    """
    for attempt in batch:
        thread = attempt.preparation.thread
        if attempt.entries and _is_astray(commands, thread, attempt.entries[0]):
            ids, log = [entry["_id"] for entry in attempt.entries], attempt.entries[0]["log"]
            commands.delete({"_id": {"$in": ids}, "family": thread.family, "log": log})
        attempt.fail(HistoryChanged())
    commands.identity.lose()


def _is_astray(commands: MongoCommands, thread: ThreadRef, entry: Document) -> bool:
    """Return whether the store lost the log, or the thread, that an entry belongs to."""
    if not commands.exists(record_of(thread)):
        return True
    log = {"family": thread.family, "log": entry["log"]}
    ends = commands.latest({**log, "slot": {"$gt": 0}, "kind": "end"}, {"slot": 1})
    if ends:
        return bool(entry["slot"] > ends[0]["slot"])
    return entry["slot"] > 1 and not commands.exists({**log, "slot": entry["slot"] - 1})


def _send_alone(commands: MongoCommands, batch: Sequence[Attempt], error: Exception) -> None:
    """Send the attempts of a batch one by one, since one of them fails."""
    if len(batch) == 1:
        batch[0].fail(error)
    else:
        for attempt in batch:
            send(commands, [attempt])
