"""The SQLite backend, all of it, its saver included."""

from forkpoint.sqlite.saver import SqliteSaver

__all__ = [
    "SqliteSaver",
]
