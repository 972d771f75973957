"""Clients by HTTP, of an application in this process and of a server."""

from __future__ import annotations

from typing import Any

import httpx

from servers import PATIENCE_SECONDS


def calling(app: Any, **options: Any) -> httpx.AsyncClient:
    """Return a client of an application in this process."""
    options = {"base_url": "http://localhost", **options}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=("127.0.0.1", 1)), **options)


def calling_at(address: str, **options: Any) -> httpx.AsyncClient:
    """Return a client of a server, which has patience with it: by default it gives up soon."""
    return httpx.AsyncClient(base_url=address, timeout=PATIENCE_SECONDS, **options)
