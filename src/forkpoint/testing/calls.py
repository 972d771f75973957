"""How the suite calls a saver: what it passes, and in which of the two worlds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6

from forkpoint.catalog.catalog import ThreadCatalog
from forkpoint.saver.saver import ForkpointSaver

WORLDS = ("sync", "async")


class Api:
    """A saver, or a catalog, whose sync methods or their async twins are called.

    Either way a call returns when it is done. Those of the sync world are made on the thread of a
    running event loop, as in a notebook.

    Args:
        saver: The saver or the catalog.
        world: `sync` or `async`.
        loop: The event loop.
    """

    def __init__(self, saver: Any, world: str, loop: asyncio.AbstractEventLoop) -> None:
        self.saver = saver
        self.world = world
        self._loop = loop

    def of(self, saver: Any) -> Api:
        """Return another saver, or a catalog, called in the same world."""
        return Api(saver, self.world, self._loop)

    def of_owner(self, owner: str) -> Api:
        """Return the saver confined to an owner."""
        return self.of(self.saver.for_owner(owner))

    def catalog(self, owner: str | None = None) -> Api:
        """Return a catalog of the saver's threads."""
        return self.of(ThreadCatalog(self.saver, owner=owner))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return self._loop.run_until_complete(self._called(name, args, kwargs))

        return call

    async def _called(self, name: str, args: Any, kwargs: Any) -> Any:
        if self.world == "sync":
            returned = getattr(self.saver, name)(*args, **kwargs)
            return list(returned) if isinstance(returned, Iterator) else returned
        returned = getattr(self.saver, "a" + name)(*args, **kwargs)
        if hasattr(returned, "__anext__"):
            return [item async for item in returned]
        return await returned

    def run(self, thread_id: str = "thread", **options: Any) -> AbstractContextManager[Any]:
        """Hold the lease of a thread while a block runs; the saver is a catalog."""
        return self.entered(self.saver.run(thread_id, **options))

    @contextmanager
    def entered(self, lease: Any) -> Iterator[Any]:
        """Hold a lease while a block runs."""
        if self.world == "sync":
            with lease:
                yield lease
            return
        self._loop.run_until_complete(lease.__aenter__())
        error: BaseException | None = None
        try:
            yield lease
        except BaseException as raised:
            error = raised
            raise
        finally:
            leaving = lease.__aexit__(type(error) if error else None, error, None)
            self._loop.run_until_complete(leaving)


def thread(thread_id: str) -> Any:
    """Return the config that names a thread."""
    return {"configurable": {"thread_id": thread_id}}


def config(thread_id: str = "thread", checkpoint_id: str | None = None, ns: str = "") -> Any:
    """Return the config that names a checkpoint, or a namespace of a thread."""
    part: dict[str, Any] = {"thread_id": thread_id, "checkpoint_ns": ns}
    if checkpoint_id is not None:
        part["checkpoint_id"] = checkpoint_id
    return {"configurable": part}


def id_of(result: Any) -> str:
    """Return the id of a checkpoint that was read, or that a config names."""
    return str(getattr(result, "config", result)["configurable"]["checkpoint_id"])


def value_of(result: Any) -> Any:
    """Return the channel values of a checkpoint that was read."""
    return result.checkpoint["channel_values"]


def checkpoint(values: Mapping[str, Any], versions: Mapping[str, Any] | None = None) -> Any:
    """Return a new checkpoint with these values."""
    made = empty_checkpoint()
    made["id"] = str(uuid6())
    made["channel_values"] = dict(values)
    made["channel_versions"] = dict(versions if versions is not None else dict.fromkeys(values, 1))
    return made


def put(
    saver: ForkpointSaver,
    values: Mapping[str, Any],
    *,
    parent: Any = None,
    thread_id: str = "thread",
    ns: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> Any:
    """Put a checkpoint with these values, all of them new, after `parent`."""
    made = checkpoint(values)
    after = parent or config(thread_id, ns=ns)
    described: Any = dict(metadata or {})
    return saver.put(after, made, described, made["channel_versions"])


def fill(saver: ForkpointSaver, steps: int, *, thread_id: str = "thread") -> list[Any]:
    """Put checkpoints, each after the one before, and return their configs."""
    configs: list[Any] = []
    for n in range(steps):
        values = {"messages": [f"message {number} " * 30 for number in range(n + 1)], "n": n}
        metadata = {"source": "loop", "step": n, "run_id": f"run-{n}"}
        parent = configs[-1] if configs else None
        configs.append(put(saver, values, parent=parent, thread_id=thread_id, metadata=metadata))
        saver.put_writes(configs[-1], [("n", n), ("text", f"{thread_id} {n} " * 300)], f"task-{n}")
    return configs


def everything(saver: ForkpointSaver, thread_id: str) -> list[Any]:
    """Return all checkpoints of a thread."""
    return list(saver.list(thread(thread_id)))
