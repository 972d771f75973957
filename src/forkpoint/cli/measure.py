"""The command that measures what is stored: stats."""

from __future__ import annotations

from typing import Annotated

import typer

from forkpoint.catalog.threads import StoreStats, ThreadFilter, ThreadStats
from forkpoint.cli.groups import Selection
from forkpoint.cli.look import time_of
from forkpoint.cli.stores import OpenStore, opened
from forkpoint.cli.terminal import JsonFlag, emit, fields, in_bytes, progress
from forkpoint.pictures.text import count_of


def stats(
    ctx: typer.Context,
    selection: Selection,
    thread: Annotated[
        str | None, typer.Argument(metavar="[THREAD]", help="The id of a thread; else all count.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say how much is stored, and what sharing saves.

    Of a thread, or of the store, or of those of its threads that match: how much its rows and
    chunks take, and how much they would if each checkpoint had its own copy of what it refers to.
    """
    if thread is not None and not selection.is_empty:
        raise typer.BadParameter("either a thread or a filter")
    chosen = selection.filter()
    with opened(ctx) as store:
        if thread is None:
            _show_store_stats(_store_stats(store, chosen), as_json)
        else:
            with progress("measuring"):
                found = store.catalog.stats(thread)
            _show_thread_stats(found, as_json)


def _store_stats(store: OpenStore, chosen: ThreadFilter) -> StoreStats:
    with progress("measuring") as tell:
        total = store.catalog.count(chosen)
        return store.catalog.store_stats(
            chosen,
            on_progress=lambda far: tell(count_of(far.threads, "thread"), far.threads, total),
        )


def _show_store_stats(found: StoreStats, as_json: bool) -> None:
    if as_json:
        emit(found)
        return
    saved = found.bytes_unshared - found.bytes_stored
    fields(
        [
            ("threads", str(found.threads)),
            ("checkpoints", str(found.checkpoints)),
            ("writes", str(found.writes)),
            ("stored", in_bytes(found.bytes_stored)),
            ("saved by sharing", f"{in_bytes(saved)} of {in_bytes(found.bytes_unshared)}"),
        ]
    )


def _show_thread_stats(found: ThreadStats, as_json: bool) -> None:
    if as_json:
        emit(found)
        return
    fields(
        [
            ("checkpoints", str(found.checkpoints)),
            ("writes", str(found.writes)),
            ("runs", str(found.runs)),
            ("stored", in_bytes(found.bytes_stored)),
            ("shared with others", in_bytes(found.bytes_shared)),
            ("first activity", time_of(found.first_activity)),
            ("last activity", time_of(found.last_activity)),
        ]
    )


COMMANDS = (stats,)
