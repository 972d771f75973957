"""What LangGraph and a user call."""

from forkpoint.saver.history import SaverParts, parts_of
from forkpoint.saver.saver import ForkpointSaver

__all__ = [
    "ForkpointSaver",
    "SaverParts",
    "parts_of",
]
