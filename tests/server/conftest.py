from __future__ import annotations

from collections.abc import Iterator

import pytest

from forkpoint.saver.saver import ForkpointSaver
from forkpoint.server import create_app
from served import Client, Gates, chat, serving


@pytest.fixture
def gates() -> Gates:
    return Gates()


@pytest.fixture
def address(saver: ForkpointSaver, gates: Gates) -> Iterator[str]:
    """The address of a server that serves a chat."""
    with serving(create_app(saver, {"chat": chat(gates)})) as address:
        yield address


@pytest.fixture(params=["sync", "async"])
def world(request: pytest.FixtureRequest) -> str:
    """Which client of LangGraph's SDK is used."""
    return str(request.param)


@pytest.fixture
def client(address: str, world: str) -> Client:
    return Client(address, world)
