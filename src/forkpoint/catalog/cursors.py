"""Cursors: the strings that say where a search goes on. Pure.

A cursor is encrypted JSON in base64, behind a MAC of it by the store's key. Cursors come back from
clients, so their content counts only if the store itself wrote it. It is encrypted because the name
of a snapshot would tell an owner how much others do.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Set
from hashlib import blake2b, shake_256
from hmac import compare_digest

from forkpoint.catalog.criteria import Criteria
from forkpoint.errors import InvalidInput
from forkpoint.storage.queries import ThreadQuery

_MAC_BYTES = 16
_SEARCH_BYTES = 8  # of the digest of a search, by which its cursors are known
_ID_BYTES = 6  # of the digest of the id of a thread that was on a first page


def cursor_of(
    key: bytes, query: ThreadQuery, criteria: Criteria, first_page: Set[bytes] = frozenset()
) -> str:
    """Return a cursor.

    Args:
        key: The store's key.
        query: The rest of the search, which begins after its `after`.
        criteria: What the search asks for.
        first_page: The digests of the threads of the first page, which the rest leaves out.
    """
    assert query.after is not None
    digests = base64.b64encode(b"".join(sorted(first_page))).decode()
    place = [*query.after, query.snapshot]
    content = json.dumps([_search_digest(query, criteria), *place, digests]).encode()
    mac = _mac(key, content)
    return base64.urlsafe_b64encode(mac + _masked(key, mac, content)).decode().rstrip("=")


def id_digests(thread_ids: Iterable[str]) -> set[bytes]:
    """Return the digests by which a cursor names the threads of a first page."""
    ids = (thread_id.encode("utf-8", "surrogatepass") for thread_id in thread_ids)
    return {blake2b(each, digest_size=_ID_BYTES).digest() for each in ids}


def resume(
    key: bytes, query: ThreadQuery, criteria: Criteria, cursor: str
) -> tuple[ThreadQuery, set[bytes]]:
    """Return the rest of a search, and the digests of the threads that it leaves out.

    Args:
        key: The store's key.
        query: The search from its beginning.
        criteria: What the search asks for.
        cursor: What `cursor_of` returned.

    Raises:
        InvalidInput: The cursor is none, or belongs to another search or another store.
    """
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        decoded = base64.b64decode(padded, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    mac = decoded[:_MAC_BYTES]
    content = _masked(key, mac, decoded[_MAC_BYTES:])
    if not content or not compare_digest(mac, _mac(key, content)):
        raise InvalidInput(f"cursor is none that a search has returned: {cursor!r:.80}")
    search_digest, place, thread_id, snapshot, digests = json.loads(content)
    if search_digest != _search_digest(query, criteria):
        raise InvalidInput(
            "cursor is that of another search; pass it with the same filter, order and owner"
        )
    joined = base64.b64decode(digests)
    starts = range(0, len(joined), _ID_BYTES)
    first_page = {joined[start : start + _ID_BYTES] for start in starts}
    return query._replace(after=(place, thread_id), snapshot=snapshot), first_page


def _mac(key: bytes, content: bytes) -> bytes:
    return blake2b(b"forkpoint cursor" + content, key=key, digest_size=_MAC_BYTES).digest()


def _masked(key: bytes, mac: bytes, content: bytes) -> bytes:
    """Return content encrypted, or what is encrypted in the clear: a synthetic-IV mode."""
    stream = shake_256(b"forkpoint cursor content" + key + mac).digest(len(content))
    mixed = int.from_bytes(content, "big") ^ int.from_bytes(stream, "big")
    return mixed.to_bytes(len(content), "big")


def _search_digest(query: ThreadQuery, criteria: Criteria) -> str:
    search = json.dumps([criteria, query.sort_by, query.descending], sort_keys=True)
    return blake2b(search.encode(), digest_size=_SEARCH_BYTES).hexdigest()
