"""Encrypting a store with another key, or for the first time, or no longer, while others use it.

The secret of the digests stays as it is, so no digest, checksum or MAC changes: it is encrypted
anew, and so is each content, where it is. What is left to do is seen in the store: a content that
the current cipher opens is done. A store that is not encrypted is one whose cipher changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from forkpoint.encoding.encryption import (
    Encryption,
    KeyRing,
    cipher_of,
    open_secret,
    stored_secret,
)
from forkpoint.errors import (
    CorruptChunk,
    EncryptionMismatch,
    InvalidInput,
    StorageBusy,
    other_encryption,
)
from forkpoint.filters import search_terms
from forkpoint.operations.context import Context
from forkpoint.operations.turns import Rest, Turns, Work, in_turns
from forkpoint.results import RekeyReport
from forkpoint.runtime.steps import Steps
from forkpoint.storage.queries import ThreadQuery
from forkpoint.storage.rows import StoredContent, ThreadRef

_PASSES = 20
_THREADS_AT_ONCE = 100
_REST = 0.5  # as a share of the time before
_LONGEST_REST_SECONDS = 0.05


def rekey(context: Context, on_progress: Callable[[RekeyReport], object]) -> Steps[RekeyReport]:
    """Encrypt everything with the current key of the key ring.

    Raises:
        InvalidInput: The serializer is no key ring, or the context is of one owner.
        EncryptionMismatch: No key of the ring is the store's.
        StorageBusy: Others go on writing with an older key.
    """
    ring = cipher_of(context.serde)
    if not isinstance(ring, KeyRing):
        raise InvalidInput("rekey needs a saver with serde=key_ring(new, old)")
    if context.owner is not None:
        raise InvalidInput("all owners of a store have one key: call rekey on a saver of all")
    if context.prepare().secret is None:
        raise other_encryption("the store", is_encrypted=True)
    yield from in_turns(context.storage, partial(_add_secret, ring))
    report = RekeyReport()
    for _ in range(_PASSES):
        before = report.rewritten
        report = yield from _one_pass(context, ring, report, on_progress)
        if report.rewritten == before:
            break
        yield from _renew_epochs(context)
    else:
        raise StorageBusy(
            f"others go on writing with an older key: {_PASSES} passes over the store each had "
            "something left to encrypt; let all savers have the key ring, and call rekey again"
        )
    if ring.reads_plain:
        yield from _list_anew(context)
    yield from in_turns(context.storage, partial(_remove_secrets, ring))
    return report


# The secret


def _add_secret(ring: KeyRing, turns: Turns) -> Work[None]:
    """Store the secret for the current key as well: each key finds it until the end."""
    yield from ()
    secrets = turns.session.secrets
    while True:
        seen = secrets.all()
        opened = {secret for stored in seen if (secret := open_secret(ring, stored)) is not None}
        if len(opened) > 1:
            raise EncryptionMismatch(
                "the store has different secrets for the keys of the key ring: somebody changed it"
            )
        if any(ring.opens_now(stored) for stored in seen):
            return
        secrets.add(stored_secret(ring.current, *opened), seen)


def _remove_secrets(ring: KeyRing, turns: Turns) -> Work[None]:
    yield from ()
    secrets = turns.session.secrets
    for stored in list(secrets.all()):
        if not ring.opens_now(stored) and open_secret(ring, stored) is not None:
            secrets.remove(stored)


# The contents


class _Part(NamedTuple):
    contents: int
    rewritten: int
    foreign: int
    after: Any


def _one_pass(
    context: Context,
    ring: KeyRing,
    report: RekeyReport,
    on_progress: Callable[[RekeyReport], object],
) -> Steps[RekeyReport]:
    report = RekeyReport(report.contents, report.rewritten)
    after: Any = None
    while True:
        began = time.monotonic()
        part = yield from in_turns(context.storage, partial(_some, ring, after))
        report = RekeyReport(
            report.contents + part.contents,
            report.rewritten + part.rewritten,
            report.foreign + part.foreign,
        )
        on_progress(report)
        after = part.after
        if after is None:
            return report
        yield Rest(min(_REST * (time.monotonic() - began), _LONGEST_REST_SECONDS))


def _some(ring: KeyRing, after: Any, turns: Turns) -> Work[_Part]:
    """Encrypt a batch of contents. It is one turn."""
    yield from ()
    encryption = Encryption(ring)
    batch = turns.session.contents.batch(after)
    changes: list[tuple[StoredContent, bytes]] = []
    contents = foreign = 0
    for stored in batch.items:
        contents += 1
        if ring.opens_now(stored.content):
            continue
        try:
            content = encryption.decrypt(stored.content)
        except CorruptChunk:
            foreign += 1
        else:
            changes.append((stored, encryption.encrypt(content)))
    turns.session.contents.replace(changes)
    return _Part(contents, len(changes), foreign, batch.after)


# The threads


def _renew_epochs(context: Context) -> Steps[None]:
    """Have forks prepared again that have read contents before they were encrypted anew."""
    renewed: set[Any] = set()
    for threads in _all_threads(context):
        for family in {thread.family for thread in threads} - renewed:
            yield from in_turns(context.storage, partial(_renew_epoch, family))
            renewed.add(family)


def _renew_epoch(family: Any, turns: Turns) -> Work[None]:
    yield from ()
    turns.session.collections.begin(family)


def _list_anew(context: Context) -> Steps[None]:
    """Have searches find threads by the values that are shown of them, if these can be read."""
    for threads in _all_threads(context):
        for thread in threads:
            yield from in_turns(context.storage, partial(_recount, thread))
    with context.storage.writing() as session:  # a search first lists what changed
        session.search.page(ThreadQuery(None, search_terms(None), limit=1))


def _recount(thread: ThreadRef, turns: Turns) -> Work[None]:
    yield from ()
    turns.session.removals.recount(thread)


def _all_threads(context: Context) -> Iterator[Sequence[ThreadRef]]:
    after: Any = None
    while True:
        with context.storage.reading() as session:
            rows = session.search.larger_than(-1, after, _THREADS_AT_ONCE)
        yield [row.thread for row in rows]
        if len(rows) < _THREADS_AT_ONCE:
            return
        after = rows[-1].thread.key
