"""What a search asks for, compared with a thread, and where it goes on. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Sequence, Set
from hashlib import blake2b
from hmac import compare_digest
from typing import Any, NamedTuple

from forkpoint import filters
from forkpoint.errors import InvalidInput
from forkpoint.storage.queries import ThreadQuery
from forkpoint.storage.rows import ThreadRow

SORT_KEYS = ("updated_at", "state_updated_at", "created_at", "thread_id", "status")
_MAC_BYTES = 16
_PRINT_BYTES = 8
_SHOWN_BYTES = 6  # of the digest of a thread's id that was on a first page
_CURSOR_LENGTH = 24_576  # the longest parts are an id, and 1,000 digests of those of a first page


class Wanted(NamedTuple):
    """A filter on threads, checked, with times in microseconds since 1970."""

    ids: Sequence[str] | None = None
    label: str | None = None
    tags: Sequence[str] = ()
    any_tags: Sequence[str] = ()
    metadata: dict[str, Any] = {}  # noqa: RUF012 - never changed
    owner: str | None = None
    statuses: Sequence[str] = ()
    created: tuple[int | None, int | None] = (None, None)
    updated: tuple[int | None, int | None] = (None, None)
    source: str | None = None
    values: dict[str, Any] = {}  # noqa: RUF012 - never changed
    label_contains: str | None = None
    """Folded."""


def selection_of(wanted: Wanted, sort_by: str, descending: bool, limit: int) -> ThreadQuery:
    """Return what to ask the store for."""
    return ThreadQuery(
        wanted.owner,
        wanted.ids,
        filters.wanted_terms(
            wanted.owner,
            wanted.label,
            wanted.tags,
            wanted.metadata,
            wanted.source,
            wanted.values,
        ),
        [
            term
            for tag in wanted.any_tags
            for term in filters.wanted_terms(wanted.owner, tags=[tag])
        ],
        wanted.statuses,
        wanted.created,
        wanted.updated,
        sort_by,
        descending,
        label_contains=wanted.label_contains,
        limit=limit,
    )


def is_exact(wanted: Wanted) -> bool:
    """Return whether the store finds those that match, and no others."""
    asked = [part for part in (wanted.metadata, wanted.values) if part]
    return all(filters.is_told_by_terms(part) for part in asked)


def matches(row: ThreadRow, wanted: Wanted) -> bool:
    """Return whether a thread is one that is wanted; its times are the store's to compare."""
    described = row.described
    return (
        (wanted.ids is None or row.thread_id in wanted.ids)
        and wanted.label in (None, described.label)
        and (
            wanted.label_contains is None
            or wanted.label_contains in filters.folded(described.label or "")
        )
        and wanted.source in (None, row.source_thread_id)
        and wanted.owner in (None, row.thread.owner)
        and set(wanted.tags) <= set(described.tags)
        and (not wanted.any_tags or not set(wanted.any_tags).isdisjoint(described.tags))
        and (not wanted.statuses or row.status in wanted.statuses)
        and (not wanted.metadata or filters.contains_json(described.metadata, wanted.metadata))
    )


# Cursors: JSON in base64, behind a MAC of it by the store's key. They come back from clients, so
# what is in them counts only if the store itself wrote it. They are not secret.


def cursor_of(
    key: bytes, selection: ThreadQuery, wanted: Wanted, shown: Set[bytes] = frozenset()
) -> str:
    """Return a string that says where a search goes on, and which threads it leaves out."""
    digests = base64.b64encode(b"".join(sorted(shown))).decode()
    assert selection.after is not None
    place = [*selection.after, selection.walk]
    content = json.dumps([_print(selection, wanted), *place, digests]).encode()
    return base64.urlsafe_b64encode(_mac(key, content) + content).decode().rstrip("=")


def shown_digests(thread_ids: Iterable[str]) -> set[bytes]:
    """Return by what it is seen later that threads were on a first page."""
    ids = (thread_id.encode("utf-8", "surrogatepass") for thread_id in thread_ids)
    return {blake2b(each, digest_size=_SHOWN_BYTES).digest() for each in ids}


def going_on(
    key: bytes, selection: ThreadQuery, wanted: Wanted, cursor: str
) -> tuple[ThreadQuery, set[bytes]]:
    """Return a selection that goes on where a cursor says, and the digests of what it leaves out.

    Raises:
        InvalidInput: The cursor is none, or one of another search or another store.
    """
    if len(cursor) > _CURSOR_LENGTH:
        raise InvalidInput(f"cursor is longer than any that a search returns: {len(cursor)}")
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        decoded = base64.b64decode(padded, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    content = decoded[_MAC_BYTES:]
    if not content or not compare_digest(decoded[:_MAC_BYTES], _mac(key, content)):
        raise InvalidInput(f"cursor is none that a search has returned: {cursor!r:.80}")
    print_, place, thread_id, walk, digests = json.loads(content)
    if print_ != _print(selection, wanted):
        raise InvalidInput(
            "cursor is that of another search; pass it with the same filter, order and owner"
        )
    joined = base64.b64decode(digests)
    starts = range(0, len(joined), _SHOWN_BYTES)
    shown = {joined[start : start + _SHOWN_BYTES] for start in starts}
    return selection._replace(after=(place, thread_id), walk=walk), shown


def _mac(key: bytes, content: bytes) -> bytes:
    return blake2b(b"forkpoint cursor" + content, key=key, digest_size=_MAC_BYTES).digest()


def _print(selection: ThreadQuery, wanted: Wanted) -> str:
    asked = json.dumps([wanted, selection.sort_by, selection.descending], sort_keys=True)
    return blake2b(asked.encode(), digest_size=_PRINT_BYTES).hexdigest()
