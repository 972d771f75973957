from __future__ import annotations

from collections.abc import Iterator

import pytest

from postgres import Postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A server for the official saver."""
    with Postgres() as server:
        yield server
