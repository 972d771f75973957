"""How much threads store, and what they share.

Each function that takes a `Context` first is one operation; see `forkpoint.operations`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any

from forkpoint.catalog.criteria import Criteria
from forkpoint.catalog.records import existing_record
from forkpoint.catalog.search import ThreadSearch, all_rows
from forkpoint.catalog.threads import StoreStats, ThreadStats
from forkpoint.clocks import time_of
from forkpoint.encoding.entries import split_refs
from forkpoint.operations.chunk_usage import chunks_of, sizes_of, threads_of
from forkpoint.operations.context import Context
from forkpoint.operations.gc import reachable, read_all
from forkpoint.operations.turns import Turns, Work, in_turns
from forkpoint.runtime.steps import Again, Steps
from forkpoint.storage.record_checksums import check_record
from forkpoint.storage.rows import ThreadRef, Usage

StatsProgress = Callable[[StoreStats], object]
"""Is called with what was measured so far."""

_THREADS_MEASURED = 100


def stats(context: Context, thread_id: str) -> Steps[ThreadStats]:
    """Return how much a thread stores.

    Nobody who writes waits for it: what others store meanwhile may be counted or not.
    """

    hashing, history = context.prepare().hashing, context.storage.history

    def work(turns: Turns) -> Work[ThreadStats]:
        row = existing_record(turns.session, thread_id)
        check_record(hashing, row)
        thread = row.thread
        usage = yield from _usage_of(thread, turns)
        chunks = yield from chunks_of(thread.family, turns)
        users = chunks.refs.keys() - {thread.key}
        if context.owner is not None:
            users &= threads_of(turns.session, turns.session.threads.family(thread.family))
        own, others = chunks.used_by({thread.key}), chunks.used_by(users)
        used = yield from turns.apart(lambda: reachable(own, chunks.links))
        used_by_others = yield from turns.apart(lambda: reachable(others, chunks.links))
        sizes = yield from sizes_of(thread.family, used, turns)
        if context.storage.history != history:
            raise Again  # some of it is of another store, maybe
        return ThreadStats(
            usage.checkpoints,
            usage.writes,
            len(usage.runs),
            usage.bytes + sum(sizes.values()),
            sum(size for digest, size in sizes.items() if digest in used_by_others),
            time_of(row.created_at),
            time_of(row.updated_at),
        )

    return (yield from in_turns(context.storage, work, only_reads=True))


def store_stats(
    context: Context, criteria: Criteria, on_progress: StatsProgress
) -> Steps[StoreStats]:
    """Return how much the threads store that match, those that have expired too."""
    total = StoreStats()
    families: dict[Any, list[Any]] = {}
    request = ThreadSearch(criteria, "thread_id", False, _THREADS_MEASURED, with_expired=True)
    for rows in all_rows(context, request):
        for row in rows:
            families.setdefault(row.thread.family, []).append(row.thread.key)
            work = partial(_usage_of, row.thread)
            usage = yield from in_turns(context.storage, work, only_reads=True)
            total = StoreStats(
                total.threads + 1,
                total.checkpoints + usage.checkpoints,
                total.writes + usage.writes,
                total.bytes_stored + usage.bytes,
                total.bytes_unshared + usage.bytes,
            )
        on_progress(total)
    for number, (family, keys) in enumerate(families.items()):
        measure = partial(_bytes_of, family, set(keys))
        stored, unshared = yield from in_turns(context.storage, measure, only_reads=True)
        total = StoreStats(
            total.threads,
            total.checkpoints,
            total.writes,
            total.bytes_stored + stored,
            total.bytes_unshared + unshared,
        )
        if number % _THREADS_MEASURED == 0:
            on_progress(total)
    return total


def _usage_of(thread: ThreadRef, turns: Turns) -> Work[Usage]:
    """Return what the rows of a thread take."""
    parts: list[Usage] = []
    yield from read_all(
        turns, lambda after: turns.session.checkpoints.usage(thread, after), parts.extend
    )
    return Usage(
        sum(part.checkpoints for part in parts),
        sum(part.writes for part in parts),
        frozenset().union(*(part.runs for part in parts)),
        sum(part.bytes for part in parts),
    )


def _bytes_of(family: Any, keys: Collection[Any], turns: Turns) -> Work[tuple[int, int]]:
    """Return the bytes of the chunks that some threads use, once each and once for each use."""
    chunks = yield from chunks_of(family, turns)
    uses = chunks.used_by(keys)
    used = yield from turns.apart(lambda: reachable(uses, chunks.links))
    sizes = yield from sizes_of(family, used, turns)
    whole = yield from turns.apart(lambda: _with_all_below(uses, chunks.links, sizes))
    return sum(sizes.values()), sum(count * whole[digest] for digest, count in uses.items())


def _with_all_below(
    roots: Iterable[bytes], links: Mapping[bytes, bytes], sizes: Mapping[bytes, int]
) -> Mapping[bytes, int]:
    """Return how many bytes chunks take with all that they lead to, each time that they do."""
    whole: dict[bytes, int] = {}
    waiting = list(roots)
    while waiting:
        digest = waiting[-1]
        below = split_refs(links.get(digest, b""))
        unknown = [link for link in below if link not in whole]
        if unknown and digest not in whole:
            waiting += unknown
            continue
        whole[digest] = sizes.get(digest, 0) + sum(whole[link] for link in below)
        waiting.pop()
    return whole
