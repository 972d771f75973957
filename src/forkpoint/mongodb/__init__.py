"""The MongoDB backend, all of it, its saver included."""

from forkpoint.mongodb.saver import MongoDBSaver

__all__ = [
    "MongoDBSaver",
]
