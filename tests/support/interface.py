"""The public interface of the savers and of the catalog, read from their signatures.

Tests that are about all methods walk it: a new method, or a new argument, fails them until it is
said here what can be passed to it.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from forkpoint import Lease, Sweeper, ThreadCatalog
from forkpoint.saver.saver import ForkpointSaver

PARTS = {"saver": ForkpointSaver, "catalog": ThreadCatalog}


class Method(NamedTuple):
    """A method, which stands for its async twin, too."""

    part: str
    name: str

    def __str__(self) -> str:
        return f"{self.part}.{self.name}"

    def key(self, parameter: str, known: Mapping[str, Any]) -> str:
        """Return what a mapping has for an argument of the method: its name, if nothing closer."""
        closer = f"{self}.{parameter}", f"{self.part}.{parameter}"
        return next((name for name in closer if name in known), parameter)

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        signature = inspect.signature(getattr(PARTS[self.part], self.name))
        return {name: one for name, one in signature.parameters.items() if name != "self"}


def methods() -> list[Method]:
    """Return all public methods, without the async twins of others."""
    return [
        Method(part, name)
        for part, kind in PARTS.items()
        for name in dir(kind)
        if not name.startswith("_")
        and inspect.isroutine(inspect.getattr_static(kind, name))
        and not (name[0] == "a" and hasattr(kind, name[1:]))
    ]


LIVE = [method for method in methods() if method.name != "close"]
"""The methods of a saver that goes on."""


class Outcome(NamedTuple):
    """What a call returned, or the error that it raised, as far as it can be compared."""

    error: str | None
    answer: Any


AT_MOST = 50
"""How many items of what a call iterates over are looked at."""


def called(caller: Any, method: Method, arguments: Mapping[str, Any]) -> Any:
    """Return what a method returns, with all that it leads to: it is waited for, and closed."""
    answer = getattr(caller, method.name)(**arguments)
    if isinstance(answer, Lease):
        with answer as lease:
            return lease.config
    if isinstance(answer, Sweeper):
        answer.stop()
        return answer.last_result
    if isinstance(answer, Iterator):
        return [found for found, _ in zip(answer, range(AT_MOST), strict=False)]
    return answer


async def acalled(caller: Any, method: Method, arguments: Mapping[str, Any]) -> Any:
    """Return what the async twin of a method returns, as `called` does."""
    twin = getattr(caller, "a" + method.name, None)
    if twin is None:
        return called(caller, method, arguments)
    answer = twin(**arguments)
    if isinstance(answer, Lease):
        async with answer as lease:
            return lease.config
    if hasattr(answer, "__anext__"):
        found: list[Any] = []
        async for item in answer:
            found.append(item)
            if len(found) == AT_MOST:
                break
        return found
    return await answer


def answer_of(caller: Any, method: Method, arguments: Mapping[str, Any], loop: Any) -> Any:
    """Return what a method returns, or its async twin in an event loop if there is one."""
    if loop is None:
        return called(caller, method, arguments)
    return loop.run_until_complete(acalled(caller, method, arguments))


_OF_A_RUN = ("holder", "since", "until", "cursor", "next_cursor")


def comparable(value: Any, depth: int = 8) -> Any:
    """Return an answer without what differs from one store, or one moment, to the next."""
    if depth == 0:
        return "..."  # a config comes back as it was given, and may lead to itself
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
        return type(value).__name__, comparable(fields, depth - 1)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return type(value).__name__, comparable(value._asdict(), depth - 1)
    if type(value) is dict:
        return {
            key: (
                comparable(inner, depth - 1)
                if (key not in _OF_A_RUN and str(key)[:2] != "__") or inner is None
                else type(inner).__name__
            )
            for key, inner in value.items()
            if key != "ts"
        }
    if isinstance(value, (list, tuple)):
        return [comparable(inner, depth - 1) for inner in value]
    if isinstance(value, ForkpointSaver):
        return type(value).__name__
    return "a time" if isinstance(value, datetime) else value
