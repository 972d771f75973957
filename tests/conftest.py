from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from forkpoint import SqliteSaver
from support import Api


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints.db"


@pytest.fixture
def saver(path: Path) -> Iterator[SqliteSaver]:
    with SqliteSaver(path, durability="normal") as saver:
        yield saver


@pytest.fixture(params=["sync", "async"])
def api(request: pytest.FixtureRequest, saver: SqliteSaver) -> Api:
    return Api(saver, request.param)
