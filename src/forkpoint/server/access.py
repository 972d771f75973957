"""Who may send requests: identities, addresses, other sites."""

from __future__ import annotations

import asyncio
import hmac
import inspect
import ipaddress
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from fastapi import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

Authenticate = Callable[[Request], Awaitable[str] | str]
"""Returns the identity of who sends a request, or raises: `HTTPException`, say, for a status."""


class ApiKeys:
    """Identities by static API keys, which requests name in the header `x-api-key`.

    Args:
        identities: The identity of each key. Several keys may have one.

    Raises:
        ValueError: There is no key, or an empty one.
    """

    def __init__(self, identities: Mapping[str, str]) -> None:
        if not identities or not all(identities) or not all(identities.values()):
            raise ValueError("ApiKeys needs at least one key, and an identity for each")
        self._identities = {key.encode(): name for key, name in identities.items()}

    def __call__(self, request: Request) -> str:
        given = request.headers.get("x-api-key", "").encode()
        identity = None
        for key, name in self._identities.items():  # all of them: the time tells nothing
            if hmac.compare_digest(key, given):
                identity = name
        if identity is None:
            raise HTTPException(401, "the header x-api-key names no key of this server")
        return identity


async def identity_of(authenticate: Authenticate, request: Request) -> str:
    """Return who sends a request.

    Raises:
        HTTPException: 401 or 403, as `authenticate` has it.
    """
    try:
        answer = authenticate(request)
        identity = await answer if inspect.isawaitable(answer) else answer
    except HTTPException:
        raise
    except Exception as error:
        status = getattr(error, "status_code", None)
        raise HTTPException(401 if status == 401 else 403, "not authenticated") from error
    if not isinstance(identity, str) or not identity:
        raise HTTPException(403, "not authenticated")
    return identity


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address is that of this machine itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _host_of(request: HTTPConnection) -> str:
    """Return the name by which the server was asked, or nothing if it is none."""
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


async def refuse_socket(websocket: WebSocket, status: int, detail: str) -> None:
    """Answer the request that a socket begins with by a status, and open none."""
    if "websocket.http.response" in websocket.scope.get("extensions", {}):
        await websocket.send_denial_response(JSONResponse({"detail": detail}, status))
    else:
        await websocket.close(4000 + status)  # the server says 403 then


class Guard:
    """Refuses what other sites or machines send, before anything else sees it.

    Without authentication, requests come from this machine, by its own name: so no page that a
    browser shows reaches the server under a name of its own. A request that changes something is
    of no other origin than those that are allowed.

    Args:
        app: What answers.
        is_open: Whether there is no authentication.
        origins: Of which pages may send requests, beside those of the server itself.
    """

    def __init__(self, app: ASGIApp, *, is_open: bool, origins: Collection[str]) -> None:
        self._app = app
        self._is_open = is_open
        self._origins = {origin.rstrip("/") for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            reason = self._refusal(HTTPConnection(scope))
            if reason is not None and scope["type"] == "http":
                await JSONResponse({"detail": reason}, 403)(scope, receive, send)
                return
            if reason is not None:
                await refuse_socket(WebSocket(scope, receive, send), 403, reason)
                return
        await self._app(scope, receive, send)

    def _refusal(self, request: HTTPConnection) -> str | None:
        if self._is_open:
            client = request.client
            if client is not None and not is_loopback(client.host):
                return "without authenticate= this server answers its own machine only"
            if not is_loopback(_host_of(request)):
                return "without authenticate= this server answers to the name localhost only"
        origin = request.headers.get("origin")
        method = request.scope.get("method")  # browsers let any page open a socket
        if method in ("GET", "HEAD", "OPTIONS") or origin is None:
            return None
        scheme = {"ws": "http", "wss": "https"}.get(request.url.scheme, request.url.scheme)
        own = f"{scheme}://{request.headers.get('host', '')}"
        is_allowed = origin == own or origin in self._origins or "*" in self._origins
        return None if is_allowed else f"pages of {origin} may not change anything here"


class BodyLimit:
    """Refuses requests with bodies over a size, with 413, and ends sockets with such messages.

    Args:
        app: What answers.
        max_bytes: The largest body.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._app(scope, partial(self._receive, receive, send), send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client is gone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_bytes:
                detail = f"the body takes more than {self._max_bytes} bytes"
                await JSONResponse({"detail": detail}, 413)(scope, receive, send)
                return
            more = message.get("more_body", False)
        body: dict[str, Any] | None = {"type": "http.request", "body": b"".join(parts)}

        async def replay() -> Any:
            nonlocal body
            whole, body = body, None
            return whole if whole is not None else await receive()

        await self._app(scope, replay, send)

    async def _receive(self, receive: Receive, send: Send) -> Any:
        """Return what comes by a socket, or its end if that is too large."""
        message = await receive()
        content = message.get("text") or message.get("bytes") or ""
        if len(content) <= self._max_bytes:
            return message
        await send({"type": "websocket.close", "code": 1009})
        return {"type": "websocket.disconnect", "code": 1009}


class EscapedPaths:
    """Lets an id in a path have slashes: what is escaped in the path stays so until it is read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = scope.get("raw_path")
        if scope["type"] in ("http", "websocket") and raw and b"%2" in raw:
            kept = raw.split(b"?")[0].replace(b"%25", b"%2525")
            kept = kept.replace(b"%2F", b"%252F").replace(b"%2f", b"%252F")
            scope = {**scope, "path": unquote_to_bytes(kept).decode("utf-8", "replace")}
        await self._app(scope, receive, send)


class Heads:
    """Answers HEAD as GET, without a body. What never ends is left as it begins."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        has_begun = asyncio.Event()
        messages = iter([{"type": "http.request", "body": b""}])

        async def receive_nothing() -> Any:
            for message in messages:
                return message
            await has_begun.wait()
            return {"type": "http.disconnect"}

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body"})
                has_begun.set()

        await self._app({**scope, "method": "GET"}, receive_nothing, send_head)
