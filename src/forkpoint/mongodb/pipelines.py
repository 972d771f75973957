"""MongoDB: stages of pipelines that go from the name of a thread to its record and its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from forkpoint.mongodb.commands import MongoCommands
from forkpoint.mongodb.documents import Document

LIVING = {"deleted_at": None, "building": None}
"""Of the document of a thread: that it is not deleted, and no copy that is not complete."""


def named_record(
    commands: MongoCommands, thread_id: str, owner: str | None = None
) -> list[Document]:
    """Return the stages that find the record of a thread by its id.

    Args:
        commands: Those of the collection.
        thread_id: The id of a thread. If it is deleted, there is no record.
        owner: Whose thread it must be; None for anybody's.
    """
    visible = LIVING if owner is None else {**LIVING, "owner": owner}
    return [
        {"$match": commands.name_of(thread_id)},
        join(commands, "record", ("key", "_id"), visible),
        {"$unwind": "$record"},
    ]


def join(
    commands: MongoCommands,
    name: str,
    fields: tuple[str, str],
    match: Document,
    stages: Sequence[Document] = (),
    family: str = "$home",
) -> Document:
    """Return the stage that finds documents of a family by a field.

    Args:
        commands: Those of the collection.
        name: The field that the documents are put into.
        fields: The field of this document, and the field of those that must be equal to it.
        match: What else they must say.
        stages: What is done with them.
        family: The expression for their family.
    """
    same = {"$expr": {"$eq": ["$family", "$$home"]}}
    return {
        "$lookup": {
            "from": commands.name,
            "localField": fields[0],
            "foreignField": fields[1],
            "let": {"home": family},
            "pipeline": [{"$match": {**same, **match}}, *stages],
            "as": name,
        }
    }


def joined_rows(
    commands: MongoCommands,
    name: str,
    match: Document,
    stages: Sequence[Document],
    since: Any = None,
) -> Document:
    """Return the stage that finds rows of the thread, from a checkpoint on if given."""
    stage = join(commands, name, ("key", "thread"), match, stages)
    if since is not None:
        lookup = stage["$lookup"]
        lookup["let"] = {"home": "$home", "since": since}
        later = {"$gte": ["$checkpoint_id", "$$since"]}
        lookup["pipeline"][0]["$match"]["$expr"] = {"$and": [{"$eq": ["$family", "$$home"]}, later]}
    return stage
