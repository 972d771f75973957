"""The arguments of the catalog's methods: checked before anything is read or written."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any, Literal
from uuid import UUID

from forkpoint import inputs
from forkpoint.archive.file import ArchiveFile
from forkpoint.catalog.criteria import SORT_KEYS, Criteria
from forkpoint.catalog.records import Changes
from forkpoint.catalog.retention import Archive, RetentionPolicy, Rules
from forkpoint.catalog.search import ThreadSearch
from forkpoint.errors import InvalidInput
from forkpoint.results import OnExpiry
from forkpoint.untrusted import shown

LARGEST_PAGE = 1000
"""How many threads a search returns at most."""
_LARGEST_OFFSET = 10_000


class _Unchanged(Enum):
    """The type of `UNCHANGED`."""

    UNCHANGED = "what it was"


UNCHANGED = _Unchanged.UNCHANGED
"""The default of the arguments of an update or a clone: the thread keeps what it has."""


@dataclass(frozen=True)
class NewThread:
    """A thread that `ThreadCatalog.create_many` is to create; the arguments of `create`."""

    thread_id: str | None = None
    label: str | None = None
    tags: Collection[str] = ()
    metadata: Mapping[str, Any] | None = None
    ttl: timedelta | Literal[_Unchanged.UNCHANGED] | None = UNCHANGED
    on_expiry: OnExpiry | Literal[_Unchanged.UNCHANGED] = UNCHANGED


def new_threads(threads: object) -> dict[str, Changes]:
    """Return what is said of threads that are to be created, by id.

    Raises:
        InvalidInput: One of them is no `NewThread`, has an argument of the wrong type, or has the
            id of another one.
    """
    if isinstance(threads, (str, bytes, Mapping)) or not isinstance(threads, Iterable):
        raise InvalidInput(
            f"threads must be an iterable of NewThread, not {type(threads).__name__}"
        )
    checked: dict[str, Changes] = {}
    for number, new in enumerate(threads):
        if not isinstance(new, NewThread):
            raise InvalidInput(f"threads[{number}] must be a NewThread, not {type(new).__name__}")
        thread_id = new_id(new.thread_id, "thread_id")
        if thread_id in checked:
            raise InvalidInput(f"threads has two of the id {thread_id!r}")
        described = new.label, new.tags, new.metadata, new.ttl, new.on_expiry
        checked[thread_id] = changes_of(*described)
    return checked


def new_id(value: object, name: str) -> str:
    """Return the id of a new thread: a UUID of version 7 for None."""
    return str(uuid7()) if value is None else inputs.identifier(value, name)


def changes_of(
    label: object, tags: object, metadata: object, ttl: object, on_expiry: object
) -> Changes:
    """Return the changes of a thread's description; `UNCHANGED` changes nothing.

    Raises:
        InvalidInput: An argument is of the wrong type.
    """
    cleared = {name for name, value in (("label", label), ("ttl", ttl)) if value is None}
    return Changes(
        None if label is None or label is UNCHANGED else inputs.identifier(label, "label"),
        None if tags is UNCHANGED else inputs.tags(tags, "tags"),
        inputs.thread_description(metadata),
        None if ttl is None or ttl is UNCHANGED else inputs.duration(ttl, "ttl"),
        None
        if on_expiry is UNCHANGED
        else inputs.choice(on_expiry, "on_expiry", ("delete", "keep_latest")),
        frozenset(cleared),
    )


def search_of(
    criteria: Criteria,
    sort_by: object,
    descending: object,
    limit: object,
    cursor: object = None,
    offset: object = 0,
) -> ThreadSearch:
    """Return a search.

    Raises:
        InvalidInput: An argument is of the wrong type, or there are a cursor and an offset.
    """
    skipped = inputs.count(offset, "offset", 0)
    if skipped and cursor is not None:
        raise InvalidInput("a search goes on at a cursor or at an offset, and not at both")
    if skipped > _LARGEST_OFFSET:
        raise InvalidInput(
            f"offset is {skipped}, and {_LARGEST_OFFSET} at most is allowed; go on by cursors"
        )
    return ThreadSearch(
        criteria,
        inputs.choice(sort_by, "sort_by", SORT_KEYS),
        inputs.flag(descending, "descending"),
        min(inputs.count(limit, "limit", 1), LARGEST_PAGE),
        None if cursor is None else inputs.text(cursor, "cursor"),
        skipped,
    )


def rules_of(policy: object) -> Rules:
    """Return the rules of a policy.

    Raises:
        InvalidInput: It is no policy, has no rule, or a value is of the wrong type.
    """
    if not isinstance(policy, RetentionPolicy):
        raise InvalidInput(f"policy must be a RetentionPolicy, not {type(policy).__name__}")
    most = policy.max_checkpoints_per_thread
    rules = Rules(
        _duration(policy.max_age, "max_age"),
        _duration(policy.max_idle, "max_idle"),
        None if most is None else inputs.count(most, "max_checkpoints_per_thread", 1),
        inputs.flag(policy.expired, "expired"),
        frozenset(inputs.tags(policy.keep_tags, "keep_tags")),
        max_checkpoint_age=_duration(policy.max_checkpoint_age, "max_checkpoint_age"),
    )
    if rules._replace(keep_tags=frozenset()) == Rules():
        raise InvalidInput("the policy has no rule; give it max_age, max_idle, or another")
    return rules


def _duration(value: object, name: str) -> int | None:
    return None if value is None else inputs.duration(value, name)


def archive_of(value: Any, *, dry_run: bool) -> Archive | ArchiveFile | None:
    """Return the file that threads are archived to, or the callback that archives them.

    Raises:
        InvalidInput: It is no path of an archive, and cannot be called.
    """
    if isinstance(value, (str, os.PathLike)):
        path = inputs.path(value, "archive")
        return None if dry_run else ArchiveFile(path)
    if value is not None and not isinstance(value, ArchiveFile):
        if not callable(value):
            raise InvalidInput(f"archive must be a path or a function, not {shown(value)}")
        inputs.callback(value, "archive")
    archive: Archive | ArchiveFile | None = value
    return archive


def uuid7() -> UUID:
    """Return a UUID of version 7, which begins with the time (RFC 9562, section 5.7)."""
    milliseconds = time.time_ns() // 1_000_000
    random = secrets.randbits(74)
    high, low = random >> 62, random & (1 << 62) - 1
    return UUID(int=milliseconds << 80 | 7 << 76 | high << 64 | 2 << 62 | low)
