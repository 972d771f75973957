"""What every backend must do, on SQLite and MongoDB."""

from __future__ import annotations

import pytest

from forkpoint.saver.saver import ForkpointSaver
from forkpoint.testing import SaverContract


class TestContract(SaverContract):
    @pytest.fixture
    def saver(self, saver: ForkpointSaver) -> ForkpointSaver:
        return saver
