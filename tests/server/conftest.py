from __future__ import annotations

from collections.abc import Iterator

import pytest

from forkpoint.saver.saver import ForkpointSaver
from forkpoint.server import commands, create_app, page_actions, run
from served import Client, Gates, chat, serving
from servers import PATIENCE_SECONDS


@pytest.fixture(autouse=True)
def waits_as_long_as_it_takes(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits a while for a run, waits for its end: on a busy machine that is not soon."""
    for module in (commands, page_actions, run):
        if module is not page_actions or not request.node.get_closest_marker("browser"):
            monkeypatch.setattr(module, "_PATIENCE_SECONDS", PATIENCE_SECONDS)


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
