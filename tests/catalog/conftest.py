"""Fixtures of the tests of the catalog."""

from __future__ import annotations

import pytest

from checking import Api
from forkpoint import ThreadCatalog


@pytest.fixture
def catalog(api: Api) -> Api:
    """A catalog whose sync methods or async twins a test calls."""
    return Api(ThreadCatalog(api.saver), api.world)
