"""Pages from templates: all that is shown is escaped, and nothing is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from fastapi import Depends, HTTPException
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request as HttpRequest
from starlette.responses import RedirectResponse, Response

from forkpoint.pictures.text import short
from forkpoint.server.failures import ANSWERED, failure_of
from forkpoint.server.page_views import moment, outcomes_of, told
from forkpoint.server.requests import RequestScope, Server

STATIC = Path(__file__).parent / "static"
"""The style, the script and the icon."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with "no-referrer", forms would be of the origin "null"
    "Cache-Control": "no-store",
}
_COOKIE = "forkpoint_key"
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters.update(short=short, moment=moment, outcomes=outcomes_of, told=told)


def page_url(http: HttpRequest, page: str, **parameters: object) -> str:
    """Return the address of a page. Ids are parameters: in a path, browsers change some of them."""
    given = {name: str(value) for name, value in parameters.items() if value not in (None, "")}
    query = f"?{urlencode(given, errors='replace')}" if given else ""
    return f"{http.scope.get('root_path', '')}/pages/{page}{query}"


def render(http: HttpRequest, template: str, status: int = 200, **values: Any) -> Response:
    """Return a page."""
    server: Server = http.app.state.forkpoint
    text = _TEMPLATES.get_template(template).render(
        **{"notice": None, **values},
        url=partial(page_url, http),
        has_logout=server.takes_keys and template not in ("login.html", "error.html"),
    )
    return Response(text.encode("utf-8", "replace"), status, HEADERS, "text/html; charset=utf-8")


def redirect(http: HttpRequest, page: str, **parameters: object) -> Response:
    """Return an answer that leads to a page."""
    return RedirectResponse(page_url(http, page, **parameters), 303, HEADERS)


def with_key(http: HttpRequest, response: Response, key: str | None) -> Response:
    """Have the browser send an API key with its requests for pages, or forget it again."""
    response.set_cookie(
        _COOKIE,
        quote(key or "", safe=""),
        max_age=0 if key is None else None,
        path=page_url(http, "").rstrip("/"),
        secure=http.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return response


def with_key_of_cookie(http: HttpRequest, key: str | None = None) -> HttpRequest:
    """Return a request that names the API key as clients do, if its cookie, or `key`, has one."""
    key = unquote(http.cookies.get(_COOKIE, "")) if key is None else key
    if not key or "x-api-key" in http.headers:
        return http
    header = (b"x-api-key", key.encode("latin-1", "replace"))
    return HttpRequest({**http.scope, "headers": [*http.scope["headers"], header]})


class PageRoute(APIRoute):
    """A route that says in a page, too, why something is not done."""

    def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_page(http: HttpRequest) -> Response:
            try:
                return await handle(http)
            except ANSWERED as error:
                failure = failure_of(error)
                if failure.status == 401 and http.app.state.forkpoint.takes_keys:
                    return redirect(http, "login")
                back = _page_before(http)
                return render(http, "error.html", failure.status, failure=failure, back=back)

        return handle_page


def _page_before(http: HttpRequest) -> str | None:
    """Return the address of the page that led here, if it is another one of these."""
    try:
        before = urlsplit(http.headers.get("referer", ""))
    except ValueError:
        return None
    is_here = (before.scheme, before.netloc) == (http.url.scheme, http.url.netloc)
    if not is_here or not before.path.startswith(page_url(http, "")):
        return None
    address = urlunsplit(("", "", before.path, before.query, ""))
    return None if address == f"{http.url.path}?{http.url.query}" else address


class Form(dict[str, str]):
    """The fields of a form that was sent."""

    def needed(self, name: str) -> str:
        """Return a field.

        Raises:
            HTTPException: 422: The form has no such field.
        """
        if not self.get(name):
            raise HTTPException(422, f"the form has no {name}")
        return self[name]


async def _page_scope(http: HttpRequest) -> RequestScope:
    server: Server = http.app.state.forkpoint
    asking = with_key_of_cookie(http) if server.takes_keys else http
    return RequestScope(server, await server.identity(asking), http)


async def _form(http: HttpRequest) -> Form:
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "a form is sent as application/x-www-form-urlencoded")
    try:
        fields = parse_qsl(
            (await http.body()).decode(), keep_blank_values=True, errors="strict", max_num_fields=50
        )
    except ValueError as error:
        raise HTTPException(422, "the form cannot be read") from error
    return Form(fields)


PageRequest = Annotated[RequestScope, Depends(_page_scope)]
SentForm = Annotated[Form, Depends(_form)]
