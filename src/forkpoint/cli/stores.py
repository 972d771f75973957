"""Which store a command is for, and how its errors end the command."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import typer
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

import forkpoint
from forkpoint.catalog.catalog import ThreadCatalog
from forkpoint.cli.terminal import (
    FOUND,
    INTERRUPTED,
    NOT_REACHABLE,
    WRONG_USE,
    fail,
    print_no_more,
    print_the_rest,
)
from forkpoint.errors import (
    PASS_SERDE,
    SERDE_ENCRYPTS,
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
from forkpoint.transfer.foreign import SqliteReader

_PATIENCE_MILLISECONDS = 10_000
_MAKING = ("import", "restore", "migrate")
"""The commands that make a store if they are told to."""


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
    is_server = ctx.info_name == "serve"
    with ending(), contextlib.nullcontext() if is_server else _no_advice_for_programs():
        advice = "pass --create" if ctx.info_name in _MAKING else "`migrate --create` makes one"
        saver = saver_of(options, options.store, may_make=may_make, advice=f"; {advice}")
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
        try:
            yield
        except typer.Exit:
            print_the_rest()
            raise
    except BrokenPipeError:
        print_no_more(sys.stdout)  # whoever reads has seen enough
        raise typer.Exit(0) from None
    except (KeyboardInterrupt, typer.Abort):  # the latter, while a question is asked
        raise fail("interrupted", INTERRUPTED) from None
    except EncryptionMismatch as error:
        raise fail(as_typed(str(error)), NOT_REACHABLE) from None
    except ForkpointError as error:
        raise fail(str(error), _code_of(error)) from None
    except OSError as error:  # of what is printed, as a rule: those of a store are typed
        print_no_more(sys.stdout)
        raise fail(str(error), NOT_REACHABLE) from None


def as_typed(text: str) -> str:
    """Return what an error says with the options of the command in place of a saver's."""
    text = text.replace(PASS_SERDE, f"; pass --encrypted, with the key in {KEY_VARIABLE}")
    return text.replace(SERDE_ENCRYPTS, f", and --encrypted was passed with that in {KEY_VARIABLE}")


@contextmanager
def _no_advice_for_programs() -> Iterator[None]:
    """Let nothing be logged of classes that are not there: the command needs none."""

    def refuse(_: logging.LogRecord) -> bool:
        return False

    log = logging.getLogger("forkpoint")
    log.addFilter(refuse)
    try:
        yield
    finally:
        log.removeFilter(refuse)


def _code_of(error: ForkpointError) -> int:
    if isinstance(error, CorruptChunk | UnreadableValue):
        return FOUND
    kinds = (StorageError, SchemaVersionError, SourceError, NoWorkerThread)
    return NOT_REACHABLE if isinstance(error, kinds) else WRONG_USE


def saver_of(
    options: StoreOptions, store: str | None, *, may_make: bool = False, advice: str = ""
) -> ForkpointSaver:
    """Return a saver for what names a store, with the other options of the command.

    Args:
        options: Those that were typed before the command.
        store: What names it.
        may_make: Whether to make it if there is none.
        advice: How it is made, for the error that there is none.

    Raises:
        Exit: It names none, or there is none and it may not be made.
    """
    if not store:
        raise fail("which store? Pass --store STORE before the command, or set FORKPOINT_STORE")
    serde = _serializer() if options.is_encrypted else None
    place, is_on_server = address_of(store)
    if is_on_server:
        given: dict[str, Any] = (
            {} if options.collection is None else {"collection": options.collection}
        )
        if "serverselectiontimeoutms" not in store.lower():
            given["serverSelectionTimeoutMS"] = _PATIENCE_MILLISECONDS
        if not may_make and not mongodb_saver_type().exists(store, place, **given):
            raise fail(f"there is no store in the database {place!r}{advice}", NOT_REACHABLE)
        return open_store(store, serde=serde, **given)
    if options.collection is not None:
        raise fail("--collection is for stores in MongoDB")
    if place == ":memory:":
        raise no_store(store)
    is_there = forkpoint.SqliteSaver.exists(place)
    try:
        saver = forkpoint.SqliteSaver(place, serde=serde)
    except InvalidInput as error:  # a file that is no database, or no file
        raise fail(str(error), NOT_REACHABLE) from None
    if not (is_there or may_make):
        other = "; it is LangGraph's own saver's: `import --from langgraph-sqlite` reads it"
        advice = other if _is_official(place, saver) else advice
        raise fail(f"there is no store at {place!r}{advice}", NOT_REACHABLE)
    return saver


def _is_official(path: str, saver: ForkpointSaver) -> bool:
    """Return whether a file is the database of `langgraph-checkpoint-sqlite`."""
    try:
        SqliteReader(path, saver.serde).close()
    except SourceError:
        return False
    return True


def _serializer() -> EncryptedSerializer:
    serde = serializer_of_environment()
    if serde is None:
        raise fail(f"--encrypted needs the key in the environment variable {KEY_VARIABLE}")
    return serde
