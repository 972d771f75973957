"""The clients of threads of LangGraph's SDK, called alike, and how they are called."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any


class Awaited:
    """A part of the sync client, which is called from an event loop as the async one is."""

    def __init__(self, part: Any) -> None:
        self._part = part

    def __getattr__(self, name: str) -> Any:
        if name == "output":  # a property that waits
            return asyncio.to_thread(getattr, self._part, name)
        value = getattr(self._part, name)
        if name == "events":
            return each_of(value)
        if name == "stream":
            return functools.wraps(value)(lambda *args, **options: Awaited(value(*args, **options)))
        if not callable(value):
            return Awaited(value) if name == "run" else value

        @functools.wraps(value)
        async def call(*args: Any, **options: Any) -> Any:
            answer = await asyncio.to_thread(value, *args, **options)
            return each_of(answer) if inspect.isgenerator(answer) else answer

        return call

    async def __aenter__(self) -> Any:
        return Awaited(await asyncio.to_thread(self._part.__enter__))

    async def __aexit__(self, *error: Any) -> None:
        await asyncio.to_thread(self._part.__exit__, *error)


async def each_of(items: Iterator[Any]) -> AsyncIterator[Any]:
    end = object()
    while (item := await asyncio.to_thread(next, items, end)) is not end:
        yield item


class Noted:
    """The client of threads, which notes each parameter that a method is called with."""

    def __init__(self, threads: Any) -> None:
        self._threads = threads
        self.parameters: defaultdict[str, set[str]] = defaultdict(set)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._threads, name)

        def call(*args: Any, **options: Any) -> Any:
            self.parameters[name] |= set(inspect.signature(method).bind(*args, **options).arguments)
            return method(*args, **options)

        return call


def parameters(client: type) -> dict[str, set[str]]:
    """Return the parameters of the methods of a client of threads, but for what is HTTP's."""
    methods = inspect.getmembers(client, inspect.isfunction)
    return {
        name: set(inspect.signature(method).parameters) - {"self", "headers", "params"}
        for name, method in methods
        if not name.startswith("_")
    }
