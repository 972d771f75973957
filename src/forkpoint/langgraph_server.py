"""forkpoint as the checkpointer of LangGraph's own server, named in `langgraph.json`.

    "checkpointer": {"path": "forkpoint.langgraph_server.checkpointer"}

`FORKPOINT_STORE` names the store: a path, or a MongoDB connection string with the database in it.
With `LANGGRAPH_AES_KEY` it is encrypted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from forkpoint.catalog.catalog import ThreadCatalog
from forkpoint.catalog.threads import ThreadFilter
from forkpoint.opening import store_of_environment
from forkpoint.saver.saver import ForkpointSaver


@asynccontextmanager
async def checkpointer() -> AsyncIterator[ForkpointSaver]:
    """Open the store of the environment, for as long as the server uses it."""
    saver = store_of_environment()
    try:
        yield saver
    finally:
        await saver.aclose()


async def register_threads(
    catalog: ThreadCatalog, client: Any, filter: ThreadFilter | None = None
) -> int:
    """Make the threads of a store known to a server that has forgotten them.

    LangGraph's server keeps its list of threads apart from their states. A thread that it knows
    is left as it is there.

    Args:
        catalog: The threads of the store.
        client: A client of the server, of `langgraph_sdk.get_client`.
        filter: Which threads; all by default.

    Returns:
        How many threads were looked at. Each is known to the server then.
    """
    count = 0
    async for thread in catalog.awalk(filter):
        await client.threads.create(
            thread_id=thread.thread_id,
            metadata=dict(thread.metadata),
            if_exists="do_nothing",
        )
        count += 1
    return count
