"""How threads are related by forks and clones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forkpoint import clocks, langgraph_rules
from forkpoint.errors import CorruptChunk
from forkpoint.operations.context import Context
from forkpoint.operations.places import existing_thread
from forkpoint.pictures.shown import FamilyTree
from forkpoint.results import FamilyNode, LineageEntry
from forkpoint.storage.record_checksums import check_kinship
from forkpoint.storage.row_checksums import json_object
from forkpoint.storage.rows import FamilyMember


def lineage(context: Context, thread_id: str) -> list[LineageEntry]:
    """Return a thread, the thread that it was made from, and so on."""
    context.prepare()
    with context.storage.reading() as session:
        members = session.threads.lineage(existing_thread(session, thread_id))
    for member in members:
        check_kinship(context.codec.hashing, member)
    parents = [*(member.thread_id for member in members[1:]), None]
    return [_entry(member, parent) for member, parent in zip(members, parents, strict=True)]


def family(context: Context, thread_id: str) -> FamilyTree:
    """Return the tree of all threads that forks and clones join.

    Raises:
        ThreadNotFound: There is no such thread.
        CorruptChunk: The first thread of the family is missing, or a record is damaged.
    """
    context.prepare()
    with context.storage.reading() as session:
        thread = existing_thread(session, thread_id)
        members = {member.key: member for member in session.threads.family(thread.family)}
    root = thread.key
    while root in members:
        check_kinship(context.codec.hashing, members[root])
        if members[root].parent is None:
            break
        root = members[root].parent
    tree = _tree_of(root, members)
    for member in tree.values():
        check_kinship(context.codec.hashing, member)
    nodes = _nodes(tree, thread.key)
    if root not in nodes:
        raise CorruptChunk(f"the first thread of the family of {thread_id!r} is missing")
    return FamilyTree(nodes[root])


def _tree_of(root: Any, members: Mapping[Any, FamilyMember]) -> dict[Any, FamilyMember]:
    """Return a thread and all that descend from it, by key.

    Others share chunks with them, and are not related any more: they were given to other owners.
    """
    below = _children_of(members)
    tree: dict[Any, FamilyMember] = {}
    waiting = [members[root]] if root in members else []
    while waiting:
        member = waiting.pop()
        tree[member.key] = member
        waiting += [child for child in below.get(member.key, []) if child.key not in tree]
    return tree


def _children_of(members: Mapping[Any, FamilyMember]) -> dict[Any, list[FamilyMember]]:
    children: dict[Any, list[FamilyMember]] = {}
    for member in members.values():
        children.setdefault(member.parent, []).append(member)
    return children


def _nodes(members: Mapping[Any, FamilyMember], current: Any) -> dict[Any, FamilyNode]:
    """Return the nodes of a tree by key, without deleted threads that have no descendants.

    Args:
        members: All threads of the tree, by key.
        current: The key of the thread that was asked for.
    """
    children = _children_of(members)
    nodes: dict[Any, FamilyNode] = {}
    for member in _children_first(children):
        below = [
            nodes[child.key]
            for child in _oldest_first(children.get(member.key, []))
            if child.key in nodes
        ]
        if member.deleted_at is not None and not below:
            continue
        parent = members[member.parent].thread_id if member.parent in members else None
        entry, is_current = _entry(member, parent), member.key == current
        nodes[member.key] = FamilyNode(entry, tuple(below), is_current)
    return nodes


def _children_first(children: Mapping[Any, list[FamilyMember]]) -> list[FamilyMember]:
    """Return the members of a tree, each after its children. It may be any number of levels deep.

    Args:
        children: The children of each member by its key; of None, the root.
    """
    parents_first: list[FamilyMember] = []
    waiting = [None]
    while waiting:
        below = children.get(waiting.pop(), [])
        parents_first += below
        waiting += [member.key for member in below]
    return parents_first[::-1]


def _oldest_first(members: list[FamilyMember]) -> list[FamilyMember]:
    return sorted(members, key=lambda member: (member.created_at, member.thread_id))


def _entry(member: FamilyMember, parent: str | None) -> LineageEntry:
    step = None
    if member.fork_metadata:
        step = json_object(member.fork_metadata, member.parent_checkpoint_id).get("step")
    made_at = langgraph_rules.made_at(member.parent_checkpoint_id or "")
    return LineageEntry(
        member.thread_id,
        member.deleted_at is None,
        member.edge,  # type: ignore[arg-type]
        parent,
        member.parent_checkpoint_id,
        step if isinstance(step, int) else None,
        None if made_at is None else clocks.time_of(made_at),
        clocks.time_of(member.created_at),
        member.checkpoint_count,
    )
