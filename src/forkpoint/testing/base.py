"""What a part of the suite is made of: fixtures for a saver, and for calling it in both worlds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from forkpoint.saver.saver import ForkpointSaver
from forkpoint.testing.calls import WORLDS, Api


class Contract:
    """A part of what every backend must do.

    A subclass says how a saver with a store of its own is made: by `make_saver`, or by a fixture
    `saver` of its own where that takes other fixtures.
    """

    make_saver: Callable[..., ForkpointSaver]
    """Returns a saver for a new, empty store."""

    @pytest.fixture
    def saver(self) -> Iterator[ForkpointSaver]:
        """A saver for a new, empty store, closed at the end."""
        with self.make_saver() as saver:
            yield saver

    @pytest.fixture(params=WORLDS)
    def api(self, request: pytest.FixtureRequest, saver: ForkpointSaver) -> Iterator[Api]:
        """The saver, called by its sync methods, and by their async twins."""
        loop = asyncio.new_event_loop()
        yield Api(saver, request.param, loop)
        loop.close()

    @pytest.fixture
    def catalog(self, api: Api) -> Api:
        """A catalog of the saver's threads, called in the same way."""
        return api.catalog()
