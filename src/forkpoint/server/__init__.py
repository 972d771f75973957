"""Threads over HTTP, as `langgraph_sdk` asks for them."""

from forkpoint.server.access import ApiKeys
from forkpoint.server.app import create_app
from forkpoint.server.serving import serve

__all__ = ["ApiKeys", "create_app", "serve"]
