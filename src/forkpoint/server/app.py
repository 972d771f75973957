"""The ASGI application, to be served, or mounted in another one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version

import langgraph.errors
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from forkpoint.catalog.catalog import ThreadCatalog
from forkpoint.errors import InvalidInput
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.server import (
    assistants,
    bodies,
    commands,
    forks,
    page_actions,
    pages,
    run_routes,
    states,
    threads,
)
from forkpoint.server.access import Authenticate, BodyLimit, EscapedPaths, Guard, Heads
from forkpoint.server.bodies import Json
from forkpoint.server.failures import ANSWERED, failure_of
from forkpoint.server.page_rendering import STATIC
from forkpoint.server.requests import Graph, Server
from forkpoint.server.runs import Runs

_FAILURES = (400, 401, 403, 404, 409, 413, 422, 503)
_EXPOSED = ["Content-Location", "Location", "X-Pagination-Total", "X-Pagination-Next"]


def create_app(
    saver_or_catalog: ForkpointSaver | ThreadCatalog,
    graphs: Mapping[str, Graph] | None = None,
    authenticate: Authenticate | None = None,
    *,
    origins: Collection[str] = (),
    max_body_bytes: int = 16 * 1024 * 1024,
) -> FastAPI:
    """Return an application that serves threads as `langgraph_sdk` asks for them.

    Without `authenticate` it answers requests of its own machine only.

    Args:
        saver_or_catalog: The threads. Of a catalog of one owner, those of that owner.
        graphs: Compiled graphs by name. A thread's graph is the one that its `graph_id` in its
            metadata names, or the only one. They run with the checkpointer that is served.
        authenticate: Gets each request, and returns the identity of who sends it, or raises; may
            be async. Each identity has threads of its own, and those of others do not exist for it.
        origins: Pages of which origins (`https://chat.example.com`) may use it from a browser.
        max_body_bytes: The largest body of a request; a larger one gets 413.

    Raises:
        InvalidInput: An argument is of the wrong type.
    """
    catalog = saver_or_catalog
    if not isinstance(catalog, ThreadCatalog):
        catalog = ThreadCatalog(catalog)
    graphs = {} if graphs is None else graphs
    _check_graphs(graphs)
    runs = Runs()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        runs.open()
        yield
        await runs.close()

    app = FastAPI(
        title="forkpoint",
        version=version("forkpoint"),
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts of another host
        redoc_url=None,
        responses={status: {"model": bodies.ErrorReply} for status in _FAILURES},
    )
    app.state.forkpoint = Server(catalog, graphs, authenticate, runs)
    app.mount("/pages/static", StaticFiles(directory=STATIC))
    for routes in (
        threads,
        states,
        run_routes,
        commands,
        assistants,
        forks,
        pages,
        page_actions,
    ):
        app.include_router(routes.router)
    app.add_api_route("/ok", _ok, response_model=Json, tags=["server"])
    app.add_api_route("/info", _info, response_model=Json, tags=["server"])
    for kind in ANSWERED:
        app.add_exception_handler(kind, _failed)
    app.add_middleware(EscapedPaths)
    app.add_middleware(Heads)
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)
    app.add_middleware(Guard, is_open=authenticate is None, origins=origins)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )
    return app


def _check_graphs(graphs: object) -> None:
    if not isinstance(graphs, Mapping):
        raise InvalidInput(f"graphs must be a mapping of names, not {type(graphs).__name__}")
    for name, graph in graphs.items():
        if not isinstance(name, str) or not hasattr(graph, "astream"):
            advice = "; call its compile()" if hasattr(graph, "compile") else ""
            raise InvalidInput(
                f"graphs[{name!r}] must be a compiled graph, not {type(graph).__name__}{advice}"
            )


async def _ok() -> Json:
    """Say that the server is there."""
    return {"ok": True}


async def _info(request: Request) -> Json:
    """Say what the server can do."""
    flags = {
        "assistants": bool(request.app.state.forkpoint.graphs),
        "crons": False,
        "langsmith": False,
        "strict_resume": hasattr(langgraph.errors, "UnknownInterruptError"),
    }
    return {"version": version("forkpoint"), "flags": flags}


async def _failed(_: Request, error: Exception) -> JSONResponse:
    status, detail, headers = failure_of(error)
    return JSONResponse({"detail": detail}, status, headers)
