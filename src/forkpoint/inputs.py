"""The only gate for identifiers, configs, filters and limits from outside.

Everything here either returns a value of the right type or raises `InvalidInput`, and touches no
storage.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

from langgraph.checkpoint.base import get_checkpoint_metadata

from forkpoint.errors import InvalidInput
from forkpoint.filters import leaves

_LARGEST = 2**31 - 1  # what every database counts with, and more than any has
METADATA_BYTES = 4 * 1024 * 1024
"""How long metadata may be as JSON: a quarter of what fits into a document of MongoDB."""


DESCRIPTION_BYTES = 64 * 1024
"""How long the metadata of a thread may be as JSON; threads are found by all that they contain."""
DEPTH = 100
"""How many levels deep metadata, and filters on them, may be nested."""
TAGS = 1000
"""How many tags a thread may have."""
ASKED = 100
"""How many tags, and how many scalars of metadata, a filter may ask for."""
IDS = 10_000
"""How many ids a filter may name."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_LONGEST = 2**53  # microseconds: 285 years
_FENCE_DIGITS = 18  # what every database counts to


class Address(NamedTuple):
    """What a config names. `checkpoint_id` is None where the config names no checkpoint."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str | None


def identifier(value: object, what: str) -> str:
    """Return a name that is fit to be stored and looked up: a non-empty string without NUL."""
    checked = text(value, what)
    if not checked:
        raise InvalidInput(f"{what} is empty")
    return checked


def text(value: object, what: str) -> str:
    """Return a string that a database can hold: Unicode without NUL and lone surrogates."""
    if type(value) is str and value.isascii() and "\0" not in value:
        return value  # as nearly all are
    if not isinstance(value, str):
        raise InvalidInput(f"{what} must be a string, not {type(value).__name__}: {value!r:.80}")
    plain = _plain(value)
    if "\0" in plain:
        raise InvalidInput(f"{what} contains a NUL character: {plain!r:.80}")
    try:
        plain.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{what} is not valid Unicode: {plain!r:.80}") from None
    return plain


def _plain(value: str) -> str:
    """Return the characters of a string.

    A subclass may compare and print as it likes, as an enum does, and a driver may know better what
    to make of it than a string, as that of MongoDB does of `bson.Code`.
    """
    return value if type(value) is str else str.__str__(value)


def configurable(config: object) -> Mapping[str, Any]:
    """Return the `configurable` part of a config."""
    if type(config) is not dict and not isinstance(config, Mapping):
        raise InvalidInput(f"config must be a mapping, not {type(config).__name__}")
    part = config.get("configurable")
    if type(part) is not dict and not isinstance(part, Mapping):
        raise InvalidInput('config has no "configurable" mapping')
    return part


def address(config: object) -> Address:
    """Return the thread, the namespace and the checkpoint that a config names."""
    return _address(configurable(config))


def _address(part: Mapping[str, Any]) -> Address:
    if "thread_id" not in part:
        raise InvalidInput('config["configurable"] has no "thread_id"')
    return Address(
        identifier(part["thread_id"], "thread_id"),
        text(_or(part.get("checkpoint_ns"), ""), "checkpoint_ns"),
        _checkpoint_id(part),
    )


def place(named: Address) -> tuple[str, str]:
    """Return the namespace and the checkpoint, which must be named."""
    if named.checkpoint_id is None:
        raise InvalidInput('config["configurable"] has no "checkpoint_id"')
    return named.checkpoint_ns, named.checkpoint_id


def source(value: object) -> Address:
    """Return what a thread id, or the config of a checkpoint, names in the graph itself."""
    if isinstance(value, str):
        return Address(identifier(value, "thread_id"), "", None)
    named = address(value)
    if named.checkpoint_ns:
        raise InvalidInput(
            f"the config names the namespace of a subgraph, {named.checkpoint_ns!r:.80}; what "
            "concerns a thread starts from a checkpoint of its graph, with checkpoint_ns ''"
        )
    return named


def count(value: object, what: str, at_least: int) -> int:
    """Return an integer that is not too small."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput(f"{what} must be an integer, not {value!r:.80}")
    if value < at_least:
        raise InvalidInput(f"{what} must be {at_least} or more, not {value}")
    return min(value, _LARGEST)


def index(value: object) -> int:
    """Return a position, which may be negative."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput(f"index must be an integer, not {value!r:.80}")
    return max(-_LARGEST, min(value, _LARGEST))


def named_values(value: object, what: str) -> Mapping[str, Any]:
    """Return a mapping of names to anything, empty for None."""
    mapping = _mapping({} if value is None else value, what)
    return {text(key, f"a key of {what}"): mapping[key] for key in mapping}


def duration(value: object, what: str) -> int:
    """Return a positive length of time in microseconds."""
    if not isinstance(value, timedelta):
        raise InvalidInput(f"{what} must be a timedelta, not {value!r:.80}")
    microseconds = value // timedelta(microseconds=1)
    if microseconds <= 0:
        raise InvalidInput(f"{what} must be positive, not {value}")
    return min(microseconds, _LONGEST)


def moment(value: object, what: str) -> int | None:
    """Return a time in microseconds since 1970, or None."""
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise InvalidInput(f"{what} must be a datetime, not {value!r:.80}")
    if value.utcoffset() is None:
        raise InvalidInput(
            f"{what} must be aware of its time zone, as datetime.now(timezone.utc) is; {value} is "
            "not"
        )
    return (value - _EPOCH) // timedelta(microseconds=1)


def tags(value: object, what: str, at_most: int = TAGS) -> tuple[str, ...]:
    """Return tags in alphabetical order, without repetition."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Collection):
        raise InvalidInput(f"{what} must be a collection of strings, not {value!r:.80}")
    distinct = {identifier(tag, f"a tag of {what}") for tag in value}
    if len(distinct) > at_most:
        raise InvalidInput(f"{what} has {len(distinct)} tags, and {at_most} at most are allowed")
    return tuple(sorted(distinct))


def described_metadata(value: object) -> dict[str, Any]:
    """Return what is to be said of a thread, in the types that JSON knows."""
    mapping = named_values(value, "metadata")
    for key in mapping:
        if key.startswith("__"):
            raise InvalidInput(f"metadata key {key!r:.80} is reserved: it begins with __")
    encoded = as_json(mapping, "metadata")
    if len(encoded) > DESCRIPTION_BYTES:
        raise InvalidInput(
            f"metadata takes {len(encoded)} bytes as JSON, and {DESCRIPTION_BYTES} at most are "
            "kept of a thread"
        )
    return _shallow(json.loads(encoded, parse_constant=_refuse_constant), "metadata")


def _refuse_constant(name: str) -> None:
    raise InvalidInput(f"metadata contains {name}, which is no JSON value")


def _shallow(value: dict[str, Any], what: str) -> dict[str, Any]:
    """Return a JSON value that is not nested deeper than a comparison can follow."""
    level: list[Any] = [value]
    for _ in range(DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, (dict, list))
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    if level:
        raise InvalidInput(f"{what} is nested more than {DEPTH} levels deep")
    return value


LEASE = "__forkpoint_lease"
"""The key of `configurable` under which a run shows its lease. LangGraph passes it on to each put,
and keeps it out of metadata, for it begins with two underscores."""


class Shown(NamedTuple):
    """A lease that a run shows: the key of its thread, as a string, and its fence."""

    key: str
    fence: int


def _lease(shown: object) -> Shown | None:
    if shown is None:
        return None
    key, _, fence = shown.rpartition(":") if isinstance(shown, str) else ("", "", "")
    if not key or not (fence.isascii() and fence.isdigit()) or len(fence) > _FENCE_DIGITS:
        raise InvalidInput(f"{LEASE} must be what a lease's config has, not {shown!r:.80}")
    return Shown(key, int(fence))


class Origin(NamedTuple):
    """What a write comes from."""

    ancestry: Sequence[tuple[str, str]]
    """The checkpoints, as (namespace, id), that it comes after: in its own namespace, and in those
    of the graphs around it."""
    lease: Shown | None
    run: object = None
    """What tells the run from others of the process, if LangGraph says so."""


def origin(config: object, named: Address) -> Origin:
    """Return what a config says of where a write comes from."""
    part = configurable(config)
    around = part.get("checkpoint_map")
    found: dict[str, str] = {}
    if around:
        what = 'config["configurable"]["checkpoint_map"]'
        found = {
            text(namespace, f"a key of {what}"): text(checkpoint_id, f"a value of {what}")
            for namespace, checkpoint_id in _mapping(around, what).items()
        }
    if named.checkpoint_id is not None:
        found[named.checkpoint_ns] = named.checkpoint_id
    return Origin(list(found.items()), _lease(part.get(LEASE)), _run(part))


def _run(part: Mapping[str, Any]) -> object:
    """Return the object that LangGraph has one of for a run with all its subgraphs."""
    return getattr(part.get("__pregel_runtime"), "control", None)


def beginning_run(config: object, named: Address) -> object:
    """Return the run that begins with a look for its thread, or None if it is another look."""
    part = configurable(config)
    if named.checkpoint_ns or "__pregel_task_id" in part:
        return None  # a task, or a subgraph, of a run that has begun before
    return _run(part)


def shown_lease(key: object, fence: int) -> str:
    """Return what `origin` reads."""
    return f"{key}:{fence}"


def listed(config: object | None) -> tuple[str | None, str | None, str | None]:
    """Return the thread, the namespace and the checkpoint to list; None where any will do."""
    if config is None:
        return None, None, None
    thread_id, checkpoint_ns, checkpoint_id = address(config)
    given = configurable(config).get("checkpoint_ns") is not None
    return thread_id, checkpoint_ns if given else None, checkpoint_id


def before(config: object | None) -> str | None:
    """Return the id of the checkpoint that a listing ends before."""
    if config is None:
        return None
    return _checkpoint_id(configurable(config))


def limit(value: object) -> int | None:
    """Return a number of items, or None for all of them."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput(f"limit must be an integer or None, not {value!r:.80}")
    if value < 0:
        raise InvalidInput(f"limit must not be negative: {value}")
    return min(value, _LARGEST)


def size(value: object, what: str) -> int:
    """Return a number of bytes."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidInput(f"{what} must be a number of bytes, 0 or more, not {value!r:.80}")
    return value


def metadata_filter(value: object, what: str = "filter") -> dict[str, Any] | None:
    """Return a filter on metadata, in the types that JSON knows."""
    if value is None:
        return None
    mapping = _mapping(value, what)
    for key in mapping:
        if not isinstance(key, str):
            raise InvalidInput(f"a key of {what} must be a string, not {key!r:.80}")
    asked = _shallow(_decoded(as_json(mapping, what), what), what)
    if sum(1 for _ in leaves(asked)) > ASKED:
        raise InvalidInput(f"{what} asks for more than {ASKED} values")
    return asked


def checkpoint(value: object) -> Mapping[str, Any]:
    """Return a checkpoint that has what it needs to be stored."""
    mapping = _mapping(value, "checkpoint")
    values = _mapping(mapping.get("channel_values", {}), "checkpoint['channel_values']")
    channel = "a channel of checkpoint['channel_values']"
    checked = {
        **mapping,
        "id": identifier(mapping.get("id"), "checkpoint['id']"),
        "channel_values": {text(name, channel): values[name] for name in values},
    }
    if isinstance(mapping.get("channel_versions"), Mapping):
        checked["channel_versions"] = _by_plain_names(mapping["channel_versions"])
    return checked


def versions(value: object) -> Mapping[str, Any]:
    """Return new channel versions."""
    return _by_plain_names(_mapping({} if value is None else value, "new_versions"))


def _by_plain_names(mapping: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a mapping whose keys are found by the characters of their names."""
    return {_plain(key) if isinstance(key, str) else key: mapping[key] for key in mapping}


def run_id(metadata: Mapping[str, Any]) -> str | None:
    """Return the run that a checkpoint's metadata name, if it is one that can be looked for."""
    value = metadata.get("run_id")
    if value is None:
        return None
    try:
        return identifier(value, "run_id")
    except InvalidInput:
        return None  # it is metadata like any other


def checkpoint_metadata(config: Mapping[str, Any], value: object) -> Mapping[str, Any]:
    """Return a checkpoint's metadata.

    As LangGraph has it, the scalar keys of the config's `metadata` and `configurable` are in it.
    """
    mapping = _mapping({} if value is None else value, "metadata")
    merged: Mapping[str, Any] = get_checkpoint_metadata(config, mapping)  # type: ignore[arg-type]
    return merged


def thread_metadata(config: Mapping[str, Any]) -> str:
    """Return the metadata that a thread starts with, as JSON: the scalar keys of the config."""
    said = checkpoint_metadata(config, {})
    return as_json(said, "metadata") if said else "{}"


def writes(value: object) -> list[tuple[str, Any]]:
    """Return writes as pairs of channel and value."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise InvalidInput(f"writes must be a sequence of pairs, not {type(value).__name__}")
    pairs = []
    for write in value:
        if type(write) is not tuple and (
            not isinstance(write, Sequence) or isinstance(write, (str, bytes))
        ):
            raise InvalidInput(f"a write must be a pair of channel and value, not {write!r:.80}")
        if len(write) != 2:
            raise InvalidInput(f"a write must be a pair of channel and value, not {write!r:.80}")
        pairs.append((text(write[0], "the channel of a write"), write[1]))
    return pairs


def ids(value: object) -> list[str]:
    """Return the thread ids that a filter names."""
    named = identifiers(value, "id")
    if len(named) > IDS:
        raise InvalidInput(f"ids has {len(named)} ids, and {IDS} at most are allowed")
    return named


def identifiers(value: object, what: str) -> list[str]:
    """Return a sequence of identifiers, without repetition."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise InvalidInput(f"{what}s must be a sequence of strings, not {type(value).__name__}")
    return list(dict.fromkeys(identifier(entry, what) for entry in value))


def channels(value: object) -> list[str]:
    """Return channel names."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise InvalidInput(f"channels must be a sequence of strings, not {type(value).__name__}")
    return list(dict.fromkeys(text(entry, "a channel") for entry in value))


def _checkpoint_id(part: Mapping[str, Any]) -> str | None:
    value = part.get("checkpoint_id")
    return None if value is None else identifier(value, "checkpoint_id")


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if type(value) is not dict and not isinstance(value, Mapping):
        raise InvalidInput(f"{what} must be a mapping, not {type(value).__name__}")
    return value


def as_json(value: Mapping[str, Any], what: str) -> str:
    """Return a mapping as JSON. ASCII, so that lone surrogates come back as they were."""
    try:
        encoded = _ENCODER.encode(dict(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{what} cannot be written as JSON: {error}") from error
    if encoded.count("{") + encoded.count("[") >= DEPTH:
        _shallow(_decoded(encoded, what), what)
    if len(encoded) > METADATA_BYTES:
        raise InvalidInput(
            f"{what} takes {len(encoded)} bytes as JSON, and {METADATA_BYTES} at most are stored; "
            "keep what is large in the state"
        )
    return encoded


def _decoded(encoded: str, what: str) -> Any:
    try:
        return json.loads(encoded)
    except RecursionError:
        raise InvalidInput(f"{what} is nested more than {DEPTH} levels deep") from None


_ENCODER = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"))


def _or(value: object, default: str) -> object:
    return default if value is None else value
