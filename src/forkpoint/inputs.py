"""Checks of what callers pass: ids, configs, checkpoints, writes, metadata and filters.

Each function returns a value of the right type, or raises `InvalidInput`. None of them reads the
store: what depends on it, such as whether a thread has a channel, the operations check. Options
(numbers, times, choices) are checked in `forkpoint.options`. How to read objects that may raise
anything when they are read is in `forkpoint.untrusted`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from forkpoint import langgraph_rules
from forkpoint.errors import InvalidInput
from forkpoint.filters import leaves
from forkpoint.json_text import DEPTH as DEPTH
from forkpoint.json_text import METADATA_BYTES as METADATA_BYTES
from forkpoint.json_text import as_json as as_json
from forkpoint.json_text import from_json, shallow
from forkpoint.options import LONGEST as LONGEST
from forkpoint.options import callback as callback
from forkpoint.options import choice as choice
from forkpoint.options import count as count
from forkpoint.options import duration as duration
from forkpoint.options import flag as flag
from forkpoint.options import index as index
from forkpoint.options import limit as limit
from forkpoint.options import moment as moment
from forkpoint.options import path as path
from forkpoint.options import serializer as serializer
from forkpoint.options import size as size
from forkpoint.previews import PREVIEW_CHANNELS
from forkpoint.untrusted import attribute, characters, items, mapping, reading, shown

DESCRIPTION_BYTES = 64 * 1024
"""How many bytes the metadata of a thread may take as JSON. All of them are indexed."""
TAGS = 1000
"""How many tags a thread may have."""
FILTER_VALUES = 100
"""How many tags a filter may name, and how many scalars its metadata may have."""
IDS = 10_000
"""How many ids a filter may name."""

_STR = {str}
_VERSIONS = {int, float, str}
_FENCE_DIGITS = 18  # what every database counts to


class Address(NamedTuple):
    """The thread, the namespace and, if it names one, the checkpoint of a config."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str | None


def identifier(value: object, what: str) -> str:
    """Return a string that can name something in a database: not empty, and without NUL."""
    checked = text(value, what)
    if not checked:
        raise InvalidInput(f"{what} is empty")
    return checked


def text(value: object, what: str) -> str:
    """Return a string that a database can hold: Unicode without NUL and lone surrogates."""
    if type(value) is str and value.isascii() and "\0" not in value:
        return value  # as nearly all are
    if not isinstance(value, str):
        raise InvalidInput(f"{what} must be a string, not {type(value).__name__}: {shown(value)}")
    plain = characters(value)
    if "\0" in plain:
        raise InvalidInput(f"{what} contains a NUL character: {plain!r:.80}")
    try:
        plain.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{what} is not valid Unicode: {plain!r:.80}") from None
    return plain


def configurable(config: object) -> Mapping[str, Any]:
    """Return the `configurable` part of a config."""
    if isinstance(config, tuple) and attribute(config, "config") is not None:
        kind = type(config).__name__
        raise InvalidInput(f"config must be a mapping, not {kind}; pass its .config")
    part = mapping(config, "config").get("configurable")
    if part is None:
        raise InvalidInput('config has no "configurable" mapping')
    return mapping(part, 'config["configurable"]')


def address(config: object) -> Address:
    """Return what a config names."""
    return _address(configurable(config))


def _address(part: Mapping[str, Any]) -> Address:
    if "thread_id" not in part:
        raise InvalidInput('config["configurable"] has no "thread_id"')
    return Address(
        identifier(part["thread_id"], "thread_id"),
        text(_or(part.get("checkpoint_ns"), ""), "checkpoint_ns"),
        _checkpoint_id(part),
    )


def place(address: Address) -> tuple[str, str]:
    """Return the namespace and the checkpoint of an address, which must have one."""
    if address.checkpoint_id is None:
        raise InvalidInput('config["configurable"] has no "checkpoint_id"')
    return address.checkpoint_ns, address.checkpoint_id


def source(value: object) -> Address:
    """Return the address of a thread id, or of a config that names no namespace of a subgraph."""
    if isinstance(value, str):
        return Address(identifier(value, "thread_id"), "", None)
    if not isinstance(value, (Mapping, tuple)):
        kind = type(value).__name__
        raise InvalidInput(f"a thread is named by its id, a string, or by a config, not by {kind}")
    named = address(value)
    if named.checkpoint_ns:
        raise InvalidInput(
            f"the config names the namespace of a subgraph, {named.checkpoint_ns!r:.80}; what "
            "concerns a thread starts from a checkpoint of its graph, with checkpoint_ns ''"
        )
    if named.checkpoint_id is None and configurable(value).get("checkpoint_id") is not None:
        raise InvalidInput("checkpoint_id is empty")  # it is not the newest that is meant
    return named


def named_values(value: object, what: str) -> Mapping[str, Any]:
    """Return a mapping whose keys are names; an empty one for None."""
    return _by_name({} if value is None else value, what)


def tags(value: object, what: str, at_most: int = TAGS) -> tuple[str, ...]:
    """Return tags in alphabetical order, without repetition."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Collection):
        raise InvalidInput(f"{what} must be a collection of strings, not {shown(value)}")
    distinct = {identifier(tag, f"a tag of {what}") for tag in items(value, what)}
    if len(distinct) > at_most:
        raise InvalidInput(f"{what} has {len(distinct)} tags, and {at_most} at most are allowed")
    return tuple(sorted(distinct))


def thread_description(value: object) -> dict[str, Any]:
    """Return the metadata that a caller gives a thread, in the types that JSON has."""
    raw = named_values(value, "metadata")
    for key in raw:
        if key.startswith("__"):
            raise InvalidInput(f"metadata key {key!r:.80} is reserved: it begins with __")
    encoded = as_json(raw, "metadata")
    if len(encoded) > DESCRIPTION_BYTES:
        raise InvalidInput(
            f"metadata takes {len(encoded)} bytes as JSON, and {DESCRIPTION_BYTES} at most are "
            "kept of a thread"
        )
    return shallow(json.loads(encoded, parse_constant=_refuse_constant), "metadata")


def merged_description(before: str, new: Mapping[str, Any]) -> str:
    """Return the metadata of a thread, as JSON, after a caller gave it new ones, key by key.

    Raises:
        InvalidInput: They are too long together.
    """
    if not new:
        return before
    merged = as_json({**json.loads(before), **new}, "metadata")
    if len(merged) > DESCRIPTION_BYTES:
        raise InvalidInput(
            f"metadata would take {len(merged)} bytes as JSON, and {DESCRIPTION_BYTES} at most are "
            "kept of a thread; set keys to None that are not needed"
        )
    return merged


def _refuse_constant(name: str) -> None:
    raise InvalidInput(f"metadata contains {name}, which is no JSON value")


LEASE = "__forkpoint_lease"
"""The key of `configurable` under which a run passes its lease token. LangGraph passes it on to
each put, and keeps it out of metadata, because it begins with two underscores."""


class LeaseToken(NamedTuple):
    """What a run proves its lease with: the key of its thread, as a string, and its fence."""

    key: str
    fence: int


def _lease(value: object) -> LeaseToken | None:
    if value is None:
        return None
    key, _, fence = text(value, LEASE).rpartition(":")
    if not key or not (fence.isascii() and fence.isdigit()) or len(fence) > _FENCE_DIGITS:
        raise InvalidInput(f"{LEASE} must be what a lease's config has, not {shown(value)}")
    return LeaseToken(key, int(fence))


class Origin(NamedTuple):
    """Where a write comes from."""

    ancestry: Sequence[tuple[str, str]]
    """The checkpoints, as (namespace, id), that it builds on: its parent, and those of the graphs
    around its own."""
    lease: LeaseToken | None
    run: object = None
    """An object that belongs to one run of this process, if LangGraph passes one."""


_MAP = 'config["configurable"]["checkpoint_map"]'


def origin(config: object, address: Address) -> Origin:
    """Return where a write with this config comes from."""
    part = configurable(config)
    around = part.get("checkpoint_map")
    ancestry: dict[str, str] = {}
    if around is not None:
        ancestry = {
            text(namespace, f"a key of {_MAP}"): text(checkpoint_id, f"a value of {_MAP}")
            for namespace, checkpoint_id in mapping(around, _MAP).items()
        }
    if address.checkpoint_id is not None:
        ancestry[address.checkpoint_ns] = address.checkpoint_id
    lease = _lease(part.get(LEASE))
    return Origin(list(ancestry.items()), lease, langgraph_rules.run_of(part))


def beginning_run(config: object, address: Address) -> object:
    """Return the run that begins with this look for its thread; None for any other look."""
    part = configurable(config)
    if address.checkpoint_ns or langgraph_rules.is_of_task(part):
        return None  # a task, or a subgraph, of a run that has begun before
    return langgraph_rules.run_of(part)


def lease_token(key: object, fence: int) -> str:
    """Return a lease token as text, which `origin` reads."""
    return f"{key}:{fence}"


def list_scope(config: object | None) -> tuple[str | None, str | None, str | None]:
    """Return the thread, the namespace and the checkpoint to list; None for all of a kind."""
    if config is None:
        return None, None, None
    thread_id, checkpoint_ns, checkpoint_id = address(config)
    has_namespace = configurable(config).get("checkpoint_ns") is not None
    return thread_id, checkpoint_ns if has_namespace else None, checkpoint_id


def before(value: object | None) -> str | None:
    """Return the id of a checkpoint: only older ones are listed.

    LangGraph's server passes on what its clients send: a config, a checkpoint, or its id.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return identifier(value, "checkpoint_id")
    part = mapping(value, "before")
    is_checkpoint = "configurable" not in part and "checkpoint_id" in part
    return _checkpoint_id(part if is_checkpoint else configurable(value))


def metadata_filter(value: object, what: str = "filter") -> dict[str, Any] | None:
    """Return a filter on metadata, in the types that JSON has; None for none."""
    if value is None:
        return None
    filter = mapping(value, what)
    for key in filter:
        if not isinstance(key, str):
            raise InvalidInput(f"a key of {what} must be a string, not {shown(key)}")
    plain = shallow(from_json(as_json(filter, what), what), what)
    if sum(1 for _ in leaves(plain)) > FILTER_VALUES:
        raise InvalidInput(f"{what} asks for more than {FILTER_VALUES} values")
    return plain


def checkpoint(value: object) -> Mapping[str, Any]:
    """Return a checkpoint, with its id, its values and its versions checked."""
    raw = mapping(value, "checkpoint")
    checked = {**raw, "id": identifier(raw.get("id"), "checkpoint['id']"), "channel_values": {}}
    for name in ("channel_values", "channel_versions"):
        if name in raw:
            checked[name] = _by_name(raw[name], f"checkpoint[{name!r}]")
    versions = checked.get("channel_versions", {})
    if set(map(type, versions.values())) <= _VERSIONS:
        return checked  # as nearly all are
    for name, version in versions.items():
        if not isinstance(version, (int, float, str)):
            raise InvalidInput(
                f"checkpoint['channel_versions'][{name!r:.80}] must be a number or a string, not "
                f"{shown(version)}"
            )
    return checked


def versions(value: object) -> Mapping[str, Any]:
    """Return new channel versions."""
    return _by_name({} if value is None else value, "new_versions")


def version_number(value: object) -> int:
    """Return the number that the version of a channel begins with.

    Raises:
        InvalidInput: The version is no string, or begins with no number.
    """
    number = langgraph_rules.version_number(text(value, "the version of a channel"))
    if number is None:
        raise InvalidInput(f"no version of a channel begins like this: {shown(value)}")
    return number


def _by_name(value: object, what: str) -> dict[str, Any]:
    """Return a mapping whose keys are names."""
    raw = mapping(value, what)
    if set(map(type, raw)) <= _STR and (names := "".join(raw)).isascii() and "\0" not in names:
        return dict(raw)  # as nearly all are
    key = f"a key of {what}"
    return {text(name, key): inner for name, inner in raw.items()}


def run_id(metadata: Mapping[str, Any]) -> str | None:
    """Return the run that a checkpoint's metadata name; None if they name none by a string."""
    value = metadata.get("run_id")
    if value is None:
        return None
    try:
        return identifier(value, "run_id")
    except InvalidInput:
        return None  # it is metadata like any other


def checkpoint_metadata(config: Mapping[str, Any], value: object) -> Mapping[str, Any]:
    """Return the metadata of a checkpoint.

    They contain the scalar keys of the config's `metadata` and `configurable`, as LangGraph has it.
    """
    own = mapping({} if value is None else value, "metadata")
    return reading("metadata", langgraph_rules.get_checkpoint_metadata, config, own)


def writes(value: object) -> list[tuple[str, Any]]:
    """Return writes as pairs of channel and value."""
    return [_write(write) for write in _sequence(value, "writes", "pairs")]


def _write(write: object) -> tuple[str, Any]:
    is_pair = type(write) is tuple or (
        isinstance(write, Sequence) and not isinstance(write, (str, bytes))
    )
    pair = reading("a write", tuple, write) if is_pair else ()
    if len(pair) != 2:
        raise InvalidInput(f"a write must be a pair of channel and value, not {shown(write)}")
    return text(pair[0], "the channel of a write"), pair[1]


def ids(value: object) -> list[str]:
    """Return the thread ids that a filter names."""
    named = identifiers(value, "id")
    if len(named) > IDS:
        raise InvalidInput(f"ids has {len(named)} ids, and {IDS} at most are allowed")
    return named


def identifiers(value: object, what: str) -> list[str]:
    """Return a sequence of identifiers, without repetition."""
    entries = _sequence(value, f"{what}s", "strings")
    return list(dict.fromkeys(identifier(entry, what) for entry in entries))


def _sequence(value: object, what: str, of: str) -> list[Any]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise InvalidInput(f"{what} must be a sequence of {of}, not {type(value).__name__}")
    return items(value, what)


def allowlist(value: object) -> list[tuple[str, ...]]:
    """Return the names of types, each with its module."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Collection):
        raise InvalidInput(f"the allowlist must be a collection, not {type(value).__name__}")
    return [_type_name(entry) for entry in items(value, "the allowlist")]


def _type_name(entry: object) -> tuple[str, ...]:
    if isinstance(entry, type):
        return entry.__module__, entry.__name__
    is_name = isinstance(entry, Sequence) and not isinstance(entry, (str, bytes))
    parts = items(entry, "a name") if is_name else []  # type: ignore[arg-type]
    if len(parts) < 2:
        raise InvalidInput(f"a type is named as (module, name), not {shown(entry)}")
    return tuple(identifier(part, "a part of a name") for part in parts)


def channels(value: object, what: str = "channels") -> list[str]:
    """Return channel names."""
    entries = _sequence(value, what, "strings")
    return list(dict.fromkeys(text(entry, "a channel") for entry in entries))


def preview(value: object) -> tuple[str, ...]:
    """Return the channels whose values are to be shown with a thread's record."""
    named = channels(value, "preview")
    if len(named) > PREVIEW_CHANNELS:
        raise InvalidInput(
            f"preview names {len(named)} channels, and {PREVIEW_CHANNELS} at most are shown"
        )
    return tuple(named)


def _checkpoint_id(part: Mapping[str, Any]) -> str | None:
    """Return the id of a checkpoint; None for none, which is empty for LangGraph, too."""
    value = part.get("checkpoint_id")
    return None if value is None else text(value, "checkpoint_id") or None


def _or(value: object, default: str) -> object:
    return default if value is None else value
