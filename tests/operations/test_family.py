"""Families: chains of forks as long as anyone makes them, and threads without a checkpoint."""

from __future__ import annotations

import copy
import datetime as datetime_module
import pickle
from datetime import datetime, timezone
from xml.etree import ElementTree

import pytest

from checking import Api, config, put
from forkpoint.pictures.shown import FamilyTree
from forkpoint.results import FamilyNode, LineageEntry
from forkpoint.saver.saver import ForkpointSaver
from stores import SqliteStore, Store

MOMENT = datetime(2026, 1, 1, tzinfo=timezone.utc)
DEPTH = 5_000


def entry(number: int) -> LineageEntry:
    parent = f"fork-{number - 1}" if number else None
    edge = "fork" if number else None
    step = number if number else None
    return LineageEntry(f"fork-{number}", True, edge, parent, parent, step, None, MOMENT, 1)  # type: ignore[arg-type]


def chain(depth: int, last: int = 1) -> FamilyTree:
    """Return a family in which each thread was made from the one before."""
    node = FamilyNode(entry(depth), (), is_current=bool(last))
    for number in reversed(range(depth)):
        node = FamilyNode(entry(number), (node,))
    return FamilyTree(node)


def test_a_chain_of_any_length_is_compared_hashed_copied_and_stored() -> None:
    tree = chain(DEPTH)
    assert tree == chain(DEPTH)
    assert hash(tree) == hash(chain(DEPTH))
    for other in (chain(DEPTH - 1), chain(DEPTH, last=0)):
        assert tree != other
        assert tree.root != other.root
    for copied in (pickle.loads(pickle.dumps(tree)), copy.deepcopy(tree), copy.copy(tree)):
        assert copied == tree
        assert [node.is_current for node in copied][-1]
    assert repr(tree).count("FamilyNode(") == DEPTH + 1
    assert tree.root != "fork-0"


def test_a_chain_of_any_length_is_drawn() -> None:
    tree = chain(DEPTH)
    threads = DEPTH + 1
    assert len(str(tree).splitlines()) == threads
    assert tree.mermaid().count('["fork-') == threads
    picture = ElementTree.fromstring(tree.svg())
    assert len(picture.findall(".//{*}g/{*}title")) == threads


@pytest.mark.parametrize("children", [0, 1, 2, 3])
def test_the_representation_of_a_family_makes_it_again(children: int) -> None:
    below = tuple(FamilyNode(entry(n + 1)) for n in range(children))
    node = FamilyNode(entry(0), (*below[:1], FamilyNode(entry(9), below)), is_current=True)
    names = {"FamilyNode": FamilyNode, "LineageEntry": LineageEntry, "datetime": datetime_module}
    assert eval(repr(node), names) == node
    assert pickle.loads(pickle.dumps(node)) == node
    assert node != FamilyNode(entry(0), below, is_current=True)


@pytest.mark.in_turns
def test_a_chain_of_forks_has_its_lineage_and_its_family(
    saver: ForkpointSaver, store: Store
) -> None:
    put(saver, {"n": 1}, thread_id="fork-0")
    count = 200 if isinstance(store, SqliteStore) else 110  # where each takes longer
    for number in range(1, count + 1):
        saver.fork(f"fork-{number - 1}", new_thread_id=f"fork-{number}")
    lineage = saver.lineage(f"fork-{count}")
    assert [one.thread_id for one in lineage] == [f"fork-{n}" for n in reversed(range(count + 1))]
    tree = saver.family("fork-100")
    assert [node.entry for node in tree] == lineage[::-1]
    assert pickle.loads(pickle.dumps(tree)) == tree
    assert len({tree, saver.family("fork-100"), saver.family("fork-101")}) == 2
    assert len(str(tree).splitlines()) == count + 1
    assert repr(tree).count("FamilyNode(") == count + 1
    assert store.problems(saver) == []


async def test_a_thread_that_has_writes_only_is_a_family_of_its_own(api: Api, store: Store) -> None:
    """As for `lineage`. Its checkpoint may still be on its way."""
    head = config("thread", "1f100000-0000-6000-8000-000000000000")
    await api.put_writes(head, [("n", 1)], "task")
    await api.copy_thread("thread", "copy")
    for thread_id, names in (("thread", ["thread", "copy"]), ("copy", ["thread", "copy"])):
        nodes = list(await api.family(thread_id))
        assert [node.entry.thread_id for node in nodes] == names
        assert [node.entry.thread_id for node in nodes if node.is_current] == [thread_id]
        assert nodes[-1].entry in [*await api.lineage("copy")]
    await api.purge("copy")
    assert [node.entry for node in await api.family("thread")] == await api.lineage("thread")
    assert store.problems(api.saver) == []
