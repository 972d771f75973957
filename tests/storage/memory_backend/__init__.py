"""A backend in dictionaries, as a stranger would write one: against `forkpoint.storage` alone."""

from .storage import Database, MemorySaver, MemoryStorage

__all__ = ["Database", "MemorySaver", "MemoryStorage"]
