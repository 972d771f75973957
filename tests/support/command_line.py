"""The command `forkpoint`, run in this process as if it was typed."""

from __future__ import annotations

import json
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from typer.testing import CliRunner

from forkpoint.cli.app import app
from stores import MongoStore, SqliteStore, Store


class Outcome(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What was printed, which is JSON and in ASCII."""
        assert self.out.isascii()
        return json.loads(self.out)


def location(store: Store) -> str:
    """Return what `--store` names a store by."""
    if isinstance(store, SqliteStore):
        return str(store.path)
    assert isinstance(store, MongoStore)
    uri = urlsplit(store.uri)
    return uri._replace(path=f"/{store.name}").geturl()


def forkpoint(*arguments: str, store: Store | str | None = None, **environment: str) -> Outcome:
    """Run a command, on a store if one is given."""
    named = location(store) if isinstance(store, Store) else store
    before = [] if named is None else ["--store", named]
    env = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "FORKPOINT_STORE": None, **environment}
    result = CliRunner().invoke(app, [*before, *arguments], env=env, prog_name="forkpoint")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)
