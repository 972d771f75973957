"""The libraries that a server needs, and that come with an extra."""

from __future__ import annotations

from importlib.util import find_spec

from forkpoint.errors import MissingLibrary

_NEEDED = ("fastapi", "jinja2", "orjson", "sse_starlette", "uvicorn")


def check_libraries() -> None:
    """Check that all of them are installed.

    Raises:
        MissingLibrary: One is not.
    """
    for name in _NEEDED:
        if find_spec(name) is None:
            raise MissingLibrary(f"forkpoint.server needs {name}: pip install 'forkpoint[server]'")
