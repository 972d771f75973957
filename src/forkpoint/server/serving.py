"""Serving the application from a command: which graphs, on which address, for whom."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import socket
import sys
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn

from forkpoint.catalog.catalog import ThreadCatalog
from forkpoint.errors import InvalidInput
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.server.access import ApiKeys, is_loopback
from forkpoint.server.app import create_app
from forkpoint.server.runs import Runs

PORT = 8765


def serve(
    saver_or_catalog: ForkpointSaver | ThreadCatalog,
    *,
    graphs: Iterable[str] = (),
    host: str = "127.0.0.1",
    port: int = PORT,
    keys: str | os.PathLike[str] | None = None,
    origins: Collection[str] = (),
) -> None:
    """Serve threads until the process is told to end.

    Args:
        saver_or_catalog: The threads.
        graphs: Compiled graphs, each as `name=module:graph` or `name=path.py:graph`.
        host: The address to listen on: that of this machine itself, unless there are keys.
        port: The port; 0 for one that is free.
        keys: A JSON file that maps API keys to identities, `{"key": "identity"}`.
        origins: Pages of which origins may use it from a browser.

    Raises:
        InvalidInput: A graph cannot be loaded, the file of keys is none, or other machines would
            be served without keys.
    """
    authenticate = None if keys is None else _keys_in(Path(keys))
    if authenticate is None and not is_loopback(host):
        raise InvalidInput(
            f"to serve other machines ({host}) needs keys: a file of API keys and identities"
        )
    app = create_app(saver_or_catalog, load_graphs(graphs), authenticate, origins=origins)
    config = uvicorn.Config(app, host=host, port=port, log_level="info")
    server = _Server(config, app.state.forkpoint.runs)
    with suppress(KeyboardInterrupt):  # by which it was told to end, and it has
        server.run()
    if not server.started:  # older releases of uvicorn do not say so themselves
        sys.exit("Error: the server has not started")


class _Server(uvicorn.Server):
    """Ends its runs when it is told to end: else those who wait for them would keep it from that.

    Args:
        config: How it serves.
        runs: The runs of this process.
    """

    def __init__(self, config: uvicorn.Config, runs: Runs) -> None:
        super().__init__(config)
        self._runs = runs

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.gather(super().shutdown(sockets), self._runs.close())


def load_graphs(names: Iterable[str]) -> dict[str, Any]:
    """Return the graphs that are named `name=module:graph` or `name=path.py:graph`.

    Raises:
        InvalidInput: One cannot be loaded.
    """
    graphs: dict[str, Any] = {}
    for given in names:
        name, _, place = given.partition("=")
        module, _, attribute = place.rpartition(":")
        if not name or not module or not attribute:
            raise InvalidInput(f"a graph is name=module:graph or name=path.py:graph, not {given!r}")
        try:
            graphs[name] = getattr(_module(module), attribute)
        except (ImportError, OSError, AttributeError) as error:
            raise InvalidInput(f"the graph {given!r} cannot be loaded: {error}") from error
    return graphs


def _module(name: str) -> Any:
    if not name.endswith(".py"):
        if os.getcwd() not in sys.path and "" not in sys.path:
            sys.path.insert(0, os.getcwd())  # as `python -m` has it
        return importlib.import_module(name)
    return _module_of(Path(name).resolve())


def _module_of(path: Path) -> Any:
    """Return the module that a file is, of a name of its own.

    By that name, values of its classes are read: two files must not share one, nor be executed
    twice, which would make the classes twice.
    """
    of_path = ".".join(path.with_suffix("").parts[1:])
    for name in (path.stem, of_path):
        known = sys.modules.get(name)
        if known is None:
            break
        if Path(getattr(known, "__file__", None) or "").resolve() == path:
            return known
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # of what has this ending
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _keys_in(path: Path) -> ApiKeys:
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"the keys in {str(path)!r} cannot be read: {error}") from error
    if not isinstance(keys, dict) or not all(isinstance(name, str) for name in keys.values()):
        raise InvalidInput(f"{str(path)!r} must map API keys to identities: {{key: identity}}")
    try:
        return ApiKeys(keys)
    except ValueError as error:
        raise InvalidInput(f"{str(path)!r}: {error}") from error
