"""What is typed, made into what the public interface takes."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta, timezone
from typing import Any

import typer
from langchain_core.runnables import RunnableConfig

from forkpoint.errors import CheckpointNotFound
from forkpoint.saver.saver import ForkpointSaver

_UNITS = {
    "w": timedelta(weeks=1),
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
}
_DURATION = re.compile(r"(\d{1,9}[wdhms])+")
_CHECKPOINT_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_INDEX = re.compile(r"-?\d{1,9}")

PLACE = "THREAD[@PLACE]"
PLACE_HELP = (
    "A thread, for its newest checkpoint; THREAD@INDEX, where 0 is the oldest and -1 the newest; "
    "or THREAD@CHECKPOINT-ID. An id that itself ends like that is typed with an @ behind it."
)


def duration(text: str) -> timedelta:
    """Return a length of time such as `30d`, `12h` or `1d12h`.

    Raises:
        BadParameter: It is none.
    """
    if not _DURATION.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is no length of time such as 30d, 12h or 1d12h")
    try:
        parts = re.findall(r"(\d+)([wdhms])", text)
        return sum((int(count) * _UNITS[unit] for count, unit in parts), timedelta())
    except OverflowError:
        raise typer.BadParameter(f"{text!r} is too long") from None


def moment(text: str) -> datetime:
    """Return a time: ISO 8601, in UTC if it names no zone, or how long ago, such as `30d`.

    Raises:
        BadParameter: It is none.
    """
    if _DURATION.fullmatch(text):
        ago = duration(text)
        try:
            return datetime.now(timezone.utc) - ago
        except OverflowError:
            raise typer.BadParameter(f"{text!r} ago there were no years to count") from None
    try:
        parsed = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time such as 2026-01-31T12:00, and no length of time such as 30d"
        ) from None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)


def pairs(given: list[str] | None) -> dict[str, Any]:
    """Return what `KEY=VALUE` pairs say. A value is JSON, and what is no JSON is text.

    Raises:
        BadParameter: One has no `=`.
    """
    said = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"{text!r} is not of the form KEY=VALUE")
        try:
            said[key] = json.loads(value)
        except (ValueError, RecursionError):
            said[key] = value
    return said


def config_at(saver: ForkpointSaver, place: str, namespace: str = "") -> str | RunnableConfig:
    """Return what a place in a thread means: the id of the thread, or the config of a checkpoint.

    Args:
        saver: The saver.
        place: The place.
        namespace: The namespace of the subgraph whose checkpoints are meant.

    Raises:
        ThreadNotFound: There is no such thread.
        CheckpointNotFound: It has not as many checkpoints.
    """
    thread_id, at, rest = place.rpartition("@")
    if at and not rest:
        return thread_id
    if at and _INDEX.fullmatch(rest):
        if namespace:
            return _config_in(saver, thread_id, namespace, int(rest))
        return saver.at(thread_id, int(rest), values=False).config
    if at and _CHECKPOINT_ID.fullmatch(rest):
        named = {"thread_id": thread_id, "checkpoint_ns": namespace, "checkpoint_id": rest}
        return {"configurable": named}
    return place


def _config_in(saver: ForkpointSaver, thread_id: str, namespace: str, index: int) -> RunnableConfig:
    """Return the config of a checkpoint of a subgraph by its position."""
    named = {"thread_id": thread_id, "checkpoint_ns": namespace}
    found = [item.config for item in saver.list({"configurable": named}, values=False)]
    position = -1 - index  # for the newest comes first
    if not -len(found) <= position < len(found):
        raise CheckpointNotFound(
            f"index {index} is out of range: thread {thread_id!r} has not as many checkpoints in "
            f"the namespace {namespace!r}"
        )
    return found[position]
