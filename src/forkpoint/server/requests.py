"""What each request has: the threads that it may reach, the graphs, and the server's runs."""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote

import orjson
from fastapi import Depends, HTTPException, Path
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BeforeValidator
from starlette.requests import HTTPConnection
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from forkpoint.catalog.catalog import ThreadCatalog
from forkpoint.catalog.leases import Lease
from forkpoint.catalog.threads import Thread
from forkpoint.errors import ForkpointError, ThreadNotFound
from forkpoint.server.access import ApiKeys, Authenticate, identity_of

if TYPE_CHECKING:
    from forkpoint.server.runs import Runs

_LOG = logging.getLogger("forkpoint.server")
_MANY_DIGITS = re.compile(rb"[0-9]{19}")
Graph = Any
"""A compiled graph of LangGraph."""


class Server:
    """What all requests share.

    Args:
        catalog: The threads that are served.
        graphs: The compiled graphs, by name.
        authenticate: Who sends a request.
        runs: The runs of this process.
    """

    def __init__(
        self,
        catalog: ThreadCatalog,
        graphs: Mapping[str, Graph],
        authenticate: Authenticate | None,
        runs: Runs,
    ) -> None:
        self.catalog = catalog
        self.graphs = dict(graphs)
        self.runs = runs
        self.started_at = datetime.now(timezone.utc).isoformat()
        self._authenticate = authenticate
        self._confined = functools.lru_cache(maxsize=256)(
            lambda owner: ThreadCatalog(catalog.saver, owner=owner)
        )

    @property
    def takes_keys(self) -> bool:
        """Whether requests say who sends them by a static API key."""
        return isinstance(self._authenticate, ApiKeys)

    async def identity(self, request: HttpRequest) -> str | None:
        """Return who sends a request, or None where all may do all.

        Raises:
            HTTPException: 401 or 403.
        """
        if self._authenticate is None:
            return None
        return await identity_of(self._authenticate, request)

    def catalog_of(self, owner: str | None) -> ThreadCatalog:
        """Return the threads that an owner may reach."""
        if owner is None:
            return self.catalog
        return self._confined(owner)


class RequestScope:
    """One request: the threads that its sender may reach, and nothing of anybody else."""

    def __init__(self, server: Server, owner: str | None, http: HttpRequest) -> None:
        self.server = server
        self.owner = owner
        self.catalog = server.catalog_of(owner)
        self.http = http

    async def thread(self, thread_id: str) -> Thread:
        """Return a thread.

        Raises:
            ThreadNotFound: There is none of this id.
        """
        thread = await self.catalog.aget(thread_id)
        if thread is None:
            raise ThreadNotFound(f"there is no thread {thread_id!r}")
        return thread

    async def check_thread(self, thread_id: str) -> None:
        """Check that there is a thread, be its record damaged.

        Raises:
            ThreadNotFound: There is none of this id.
        """
        await self.catalog.alease(thread_id)

    @asynccontextmanager
    async def lease(self, thread_id: str, if_busy: str = "raise") -> AsyncIterator[Lease]:
        """Hold the lease of a thread. If its end fails it ends by itself, and what was done is.

        Raises:
            ThreadBusy: A run is going on, and its lease is not to be taken over.
            ThreadNotFound: There is no such thread.
        """
        async with AsyncExitStack() as stack:
            lease = self.catalog.run(thread_id, if_busy=if_busy, must_exist=True)
            await stack.enter_async_context(lease)
            try:
                yield lease
            finally:
                await release(stack, thread_id)

    def graph_named(self, name: object) -> Graph:
        """Return the graph of a name; without one, the only graph there is.

        Raises:
            HTTPException: 400: There is no such graph.
        """
        graph = self.find_graph(name)
        if graph is None:
            which = "that is named" if name is None else f"{name!r}"
            raise HTTPException(400, f"no graph {which} is served")
        return graph

    def find_graph(self, name: object) -> Graph | None:
        """Return the graph of a name, over the threads of this request, or None."""
        known = self.graph_name(name)
        if known is None:
            return None
        return self.server.graphs[known].copy({"checkpointer": self.catalog.saver})

    def graph_name(self, name: object) -> str | None:
        """Return the name of the graph that is meant, or None if there is none such."""
        graphs = self.server.graphs
        if name is None and len(graphs) == 1:
            return next(iter(graphs))
        return name if isinstance(name, str) and name in graphs else None


async def release(stack: AsyncExitStack, thread_id: str) -> None:
    """End the lease of a thread. If that fails it ends by itself, and what was done under it is."""
    try:
        await stack.aclose()
    except ForkpointError as error:
        _LOG.warning("the lease on %r is not released: %s", thread_id, error)


class StrictRoute(APIRoute):
    """A route whose bodies are JSON and nothing else: no `NaN`, no half of a character."""

    def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: HttpRequest) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return handle_strictly


class _StrictRequest(HttpRequest):
    async def json(self) -> Any:
        return read_json(await self.body())


def read_json(content: bytes | str) -> Any:
    """Return what is sent as JSON, with whole numbers as they are, however large.

    Raises:
        JSONDecodeError: It is no JSON, or too deep, or has an infinite number or half a character.
    """
    content = content.encode() if isinstance(content, str) else content
    value = orjson.loads(content)  # which rounds whole numbers of more than 64 bits
    if _MANY_DIGITS.search(content) is None:
        return value
    try:
        return json.loads(content.decode())
    except (RecursionError, ValueError) as error:
        raise json.JSONDecodeError("it is too deep, or a number too long", "", 0) from error


async def _scope_of(http: HttpRequest) -> RequestScope:
    return await scope_of(http)


async def scope_of(connection: HTTPConnection) -> RequestScope:
    """Return what a request has, or the request that a socket begins with.

    Raises:
        HTTPException: 401 or 403.
    """
    server: Server = connection.app.state.forkpoint
    http = connection
    if not isinstance(http, HttpRequest):
        http = HttpRequest({**connection.scope, "type": "http", "method": "GET"})
    return RequestScope(server, await server.identity(http), http)


def _unescaped(text: str) -> str:
    return unquote(text, errors="surrogatepass")


def _listed(value: Any) -> Any:
    """Return a list that was sent as one text: the client in JavaScript sends JSON."""
    if isinstance(value, list) and len(value) == 1 and str(value[0]).startswith("["):
        with suppress(ValueError):
            return orjson.loads(value[0])
    return value


Request = Annotated[RequestScope, Depends(_scope_of)]
InPath = Annotated[str, Path(max_length=8192), AfterValidator(_unescaped)]
"""A part of a path, which may be any text."""
ThreadId = InPath
LISTED = BeforeValidator(_listed)
"""Belongs to a parameter of a query that is a list."""
