"""Which store a command is for, and how its errors end the command."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import typer
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

import forkpoint
from forkpoint.catalog.catalog import ThreadCatalog
from forkpoint.cli.terminal import FOUND, INTERRUPTED, NOT_REACHABLE, WRONG_USE, fail
from forkpoint.errors import (
    CorruptChunk,
    EncryptionMismatch,
    ForkpointError,
    InvalidInput,
    NoWorkerThread,
    SchemaVersionError,
    SourceError,
    StorageError,
    UnreadableValue,
)
from forkpoint.opening import (
    KEY_VARIABLE,
    address_of,
    mongodb_saver_type,
    no_store,
    open_store,
    serializer_of_environment,
)
from forkpoint.saver.saver import ForkpointSaver

_PATIENCE_MILLISECONDS = 10_000


@dataclass(frozen=True)
class StoreOptions:
    """What was said of the store, before the command."""

    store: str | None
    owner: str | None
    is_encrypted: bool
    collection: str | None


class OpenStore(NamedTuple):
    """A store, confined to an owner if one was named."""

    saver: ForkpointSaver
    catalog: ThreadCatalog


@contextmanager
def opened(ctx: typer.Context, *, may_make: bool = False) -> Iterator[OpenStore]:
    """Open the store of a command, and end the command with the right code if it fails.

    Args:
        ctx: Has the `StoreOptions`.
        may_make: Whether to make a store where there is none. Else that is an error: a path may
            be mistyped.
    """
    options: StoreOptions = ctx.obj
    with ending():
        saver = saver_of(options, options.store, may_make=may_make)
        try:
            catalog = ThreadCatalog(saver, owner=options.owner)
            yield OpenStore(catalog.saver, catalog)
            sys.stdout.flush()
        finally:
            saver.close()


@contextmanager
def ending() -> Iterator[None]:
    """Turn what a command raises into a line of text and an exit code."""
    try:
        yield
    except BrokenPipeError:
        # Whoever reads has seen enough. Nothing may be written when the process ends, either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except (KeyboardInterrupt, typer.Abort):  # the latter, while a question is asked
        raise fail("interrupted", INTERRUPTED) from None
    except EncryptionMismatch as error:
        hint = f"; pass --encrypted, with the key in {KEY_VARIABLE}"
        raise fail(f"{error}{hint}", NOT_REACHABLE) from None
    except ForkpointError as error:
        raise fail(str(error), _code_of(error)) from None


def _code_of(error: ForkpointError) -> int:
    if isinstance(error, CorruptChunk | UnreadableValue):
        return FOUND
    kinds = (StorageError, SchemaVersionError, SourceError, NoWorkerThread)
    return NOT_REACHABLE if isinstance(error, kinds) else WRONG_USE


def saver_of(options: StoreOptions, store: str | None, *, may_make: bool = False) -> ForkpointSaver:
    """Return a saver for what names a store, with the other options of the command.

    Raises:
        Exit: It names none, or there is none and it may not be made.
    """
    if not store:
        raise fail("which store? Pass --store STORE before the command, or set FORKPOINT_STORE")
    serde = _serializer() if options.is_encrypted else None
    place, is_on_server = address_of(store)
    if is_on_server:
        return _mongodb_saver(store, place, options.collection, serde, may_make)
    if options.collection is not None:
        raise fail("--collection is for stores in MongoDB")
    if place == ":memory:":
        raise no_store(store)
    if not may_make and not forkpoint.SqliteSaver.exists(place):
        raise fail(f"there is no store at {place!r}; `migrate --create` makes one", NOT_REACHABLE)
    try:
        return forkpoint.SqliteSaver(place, serde=serde)
    except InvalidInput as error:  # a file that is no database
        raise fail(str(error), NOT_REACHABLE) from None


def _mongodb_saver(
    store: str, database: str, collection: str | None, serde: Any, may_make: bool
) -> ForkpointSaver:
    given: dict[str, Any] = {} if collection is None else {"collection": collection}
    if "serverselectiontimeoutms" not in store.lower():
        given["serverSelectionTimeoutMS"] = _PATIENCE_MILLISECONDS
    if not may_make and not mongodb_saver_type().exists(store, database, **given):
        raise fail(
            f"there is no store in the database {database!r}; `migrate --create` makes one",
            NOT_REACHABLE,
        )
    return open_store(store, serde=serde, **given)


def _serializer() -> EncryptedSerializer:
    serde = serializer_of_environment()
    if serde is None:
        raise fail(f"--encrypted needs the key in the environment variable {KEY_VARIABLE}")
    return serde
