"""What LangGraph and a user call."""

from forkpoint.saver.saver import ForkpointSaver

__all__ = [
    "ForkpointSaver",
]
