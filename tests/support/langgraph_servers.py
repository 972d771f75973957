"""LangGraph's own server, over a store of forkpoint's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from processes import environment
from servers import bound_socket, wait_until
from stores import MongoStore, SqliteStore, Store

EXAMPLE = Path(__file__).parents[2] / "examples" / "langgraph_server"


@contextmanager
def running(directory: Path, store: Store) -> Iterator[str]:
    """Run the server of a directory over a store, and give its address."""
    reserved = bound_socket()
    port = reserved.getsockname()[1]
    place = named(store)
    variables = {**environment(), "FORKPOINT_STORE": place, "LANGSMITH_TRACING": "false"}
    command = [sys.executable, "-m", "langgraph_cli", "dev", "--no-browser", "--no-reload"]
    with open(directory / "log.txt", "w") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port)], cwd=directory, env=variables, stdout=log, stderr=log
        )
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until(lambda: server.poll() is not None or answers(address), "the server")
            assert server.poll() is None, (directory / "log.txt").read_text()
            yield address
        finally:
            server.terminate()
            server.wait()
            reserved.close()


def named(store: Store) -> str:
    """Return what FORKPOINT_STORE says of a store."""
    if isinstance(store, SqliteStore):
        return str(store.path)
    assert isinstance(store, MongoStore)
    address, _, options = store.uri.partition("?")
    return f"{address.rstrip('/')}/{store.name}?{options}"


def answers(address: str) -> bool:
    """Return whether a server is there."""
    try:
        return httpx.get(f"{address}/ok").status_code == 200
    except httpx.TransportError:
        return False
