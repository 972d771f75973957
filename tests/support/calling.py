"""A client of an application in this process."""

from __future__ import annotations

from typing import Any

import httpx


def calling(app: Any, **options: Any) -> httpx.AsyncClient:
    """Return a client of an application in this process."""
    options = {"base_url": "http://localhost", **options}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=("127.0.0.1", 1)), **options)
