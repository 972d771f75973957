"""Threads over HTTP, as `langgraph_sdk` asks for them."""

from forkpoint.errors import MissingLibrary

try:
    from forkpoint.server.access import ApiKeys
    from forkpoint.server.app import create_app
    from forkpoint.server.serving import serve
except ModuleNotFoundError as error:
    if error.name is None or error.name.startswith("forkpoint"):
        raise
    raise MissingLibrary(
        f"forkpoint.server needs {error.name}: pip install 'forkpoint[server]'"
    ) from error

__all__ = ["ApiKeys", "create_app", "serve"]
