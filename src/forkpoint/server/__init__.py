"""Threads over HTTP, as `langgraph_sdk` asks for them."""

from forkpoint.server.libraries import check_libraries

check_libraries()

from forkpoint.server.access import ApiKeys  # noqa: E402
from forkpoint.server.app import create_app  # noqa: E402
from forkpoint.server.serving import serve  # noqa: E402

__all__ = ["ApiKeys", "create_app", "serve"]
