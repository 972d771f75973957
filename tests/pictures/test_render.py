"""The pictures say all there is to say, whatever the ids, and nothing in them overlaps."""

from __future__ import annotations

import html
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from checking import drawn
from forkpoint.pictures.shown import FamilyTree, StateDiff
from forkpoint.results import ChannelDiff, FamilyNode, LineageEntry

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=timezone.utc)
HOSTILE = [
    "x" * 300,
    "🧪" * 150,
    "line\nbreak\r\n\tand \x1b[31mcolor",
    "<script>alert('x')</script>&amp;",
    'a"] --> end; %% `code` #35; "]',
    "end",
    "1. list",
    "- item",
    "fa:fa-car",
    "$$x^2$$",
    "**bold** _em_ __init__",
    "ﬂ°°60¶ß",
    "subgraph x",
    "]]><!--",
    "日本語のスレッド" * 20,
    "مرحبا ﷽ بالعالم",
    "z" + "\u0301" * 50 + "algo",
    "👩‍👩‍👧‍👦" * 40,
    "\u202eright to left",
    "  spaces   in  it ",
    "\ufffe\ue000\u2028\u200b",
]
ids = st.sampled_from(HOSTILE) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1
)


def entry(thread_id: str, **fields: Any) -> LineageEntry:
    known = {
        "exists": True,
        "edge": None,
        "parent_thread_id": None,
        "parent_checkpoint_id": None,
        "step": None,
        "forked_from": None,
        "created_at": NOON,
        "checkpoint_count": 3,
    }
    return LineageEntry(thread_id, **{**known, **fields})


def fork(thread_id: str, parent: str, step: int | None = 4, **fields: Any) -> LineageEntry:
    known = {"parent_checkpoint_id": "1f0c6d0e-0000-6000-8000-00000000abcd", "forked_from": NOON}
    known |= {"edge": "fork", "parent_thread_id": parent, "step": step}
    return entry(thread_id, **{**known, **fields})


def clone(thread_id: str, parent: str, **fields: Any) -> LineageEntry:
    return entry(thread_id, edge="clone", parent_thread_id=parent, **fields)


def small() -> FamilyNode:
    """Return a family in which everything occurs."""
    current = FamilyNode(clone("case-7c", "case-7b"), (), is_current=True)
    first = FamilyNode(fork("case-7b", "case-7"), (current,))
    late = FamilyNode(fork("case-7d", "case-7-sandbox", None, forked_from=None))
    gone = fork("case-7-sandbox", "case-7", 2, exists=False, checkpoint_count=0)
    return FamilyNode(entry("case-7", checkpoint_count=12), (first, FamilyNode(gone, (late,))))


def family(
    parents: Sequence[int | None],
    names: Sequence[str] | None = None,
    *,
    current: int | None = None,
    purged: Sequence[int] = (),
    clones: Sequence[int] = (),
) -> FamilyNode:
    """Return a family by the parent of each thread; all but the first come after theirs."""
    names = names or [f"thread-{number}" for number in range(len(parents))]
    below: list[list[FamilyNode]] = [[] for _ in parents]
    for number, parent in reversed(list(enumerate(parents))):
        exists = number not in purged
        if parent is None:
            made = entry(names[number], exists=exists)
        elif number in clones:
            made = clone(names[number], names[parent], exists=exists)
        else:
            moment = NOON + timedelta(minutes=number)
            made = fork(names[number], names[parent], number, exists=exists, forked_from=moment)
        node = FamilyNode(made, tuple(reversed(below[number])), number == current)
        if parent is None:
            return node
        below[parent].append(node)
    raise AssertionError("a family has a first thread")


def chain(length: int) -> list[int | None]:
    return [None, *range(length - 1)]


def bushy(size: int, reach: int) -> list[int | None]:
    """Return the parents of a family that is the deeper the less far back parents are."""
    chosen = random.Random(size * reach)
    return [None, *(chosen.randrange(max(0, n - reach), n) for n in range(1, size))]


@st.composite
def families(draw: st.DrawFn) -> FamilyNode:
    size = draw(st.integers(1, 40))
    reach = draw(st.integers(1, 40))
    parents = [None, *(draw(st.integers(max(0, n - reach), n - 1)) for n in range(1, size))]
    some = st.lists(st.integers(0, size - 1))
    return family(
        parents,
        [draw(ids) for _ in parents],
        current=draw(st.none() | st.integers(0, size - 1)),
        purged=draw(some),
        clones=draw(some),
    )


PICTURED = {
    "one": family([None], current=0),
    "small": small(),
    "200 forks": family([None] + [0] * 200, current=150, purged=[7, 8], clones=[3]),
    "a chain of 50": family(chain(50), current=30, purged=[3, 4], clones=[20]),
    "a bushy 200": family(bushy(200, 200), current=120, purged=[1], clones=range(5, 200, 9)),
    "a deep 200": family(bushy(200, 6), current=120, purged=[1], clones=range(5, 200, 9)),
    "hostile ids": family([None] + [0] * 8 + list(range(12)), HOSTILE, current=5, purged=[1, 14]),
    "long ids": family(chain(11), [f"{'y' * 300}{n}" for n in range(11)], current=9, purged=[8]),
}
pictured = pytest.mark.parametrize("root", PICTURED.values(), ids=PICTURED)


# Text


def test_text_is_a_tree() -> None:
    assert str(FamilyTree(small())).splitlines() == [
        "case-7  (12 checkpoints)",
        "├─ case-7b  forked at step 4, 2026-11-21 12:00 UTC  (3 checkpoints)",
        "│  └─ case-7c ← this thread  cloned, 2026-11-21 12:00 UTC  (3 checkpoints)",
        "└─ † case-7-sandbox  purged  forked at step 2, 2026-11-21 12:00 UTC",
        "   └─ case-7d  forked at checkpoint 1f0c6d0e-0…00000abcd  (3 checkpoints)",
    ]


def test_times_are_in_utc() -> None:
    elsewhere = NOON.astimezone(timezone(timedelta(hours=9)))
    node = FamilyNode(fork("a", "b", forked_from=elsewhere))
    assert "2026-11-21 12:00 UTC" in FamilyTree(node).text()


def test_a_deep_family_goes_on_in_its_lane() -> None:
    side = [*chain(20), 4, 4, 20]
    lines = FamilyTree(family(side, purged=[6])).text().splitlines()
    assert lines[0] == "● thread-0  (3 checkpoints)"
    assert lines[1].startswith("↓ thread-1  forked at step 1, ")
    assert [line.split("  forked")[0] for line in lines[4:10]] == [
        "↓ thread-4",
        "├─ ● thread-20",
        "│  ↓ thread-22",
        "├─ ● thread-21",
        "↓ thread-5",
        "↓ † thread-6  purged",
    ]


@drawn(12, 100, families())
def test_text_has_a_line_for_each_thread(root: FamilyNode) -> None:
    nodes = list(root)
    lines = FamilyTree(root).text().splitlines()
    assert len(lines) == len(nodes)
    assert all(line.replace("\u200d", "").isprintable() for line in lines)
    # An id may say anything, this as well.
    assert sum("← this thread" in line for line in lines) >= sum(n.is_current for n in nodes)
    assert sum("  purged" in line for line in lines) >= sum(not n.entry.exists for n in nodes)
    for made, count in (("  forked at ", "fork"), ("  cloned", "clone")):
        assert sum(made in line for line in lines) >= sum(n.entry.edge == count for n in nodes)


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({}, "forked at step 4, 2026-11-21 12:00 UTC"),
        ({"forked_from": None}, "forked at step 4"),
        ({"step": None}, "forked at 2026-11-21 12:00 UTC"),
        ({"step": None, "forked_from": None}, "forked at checkpoint 1f0c6d0e-0…00000abcd"),
        ({"step": None, "forked_from": None, "parent_checkpoint_id": None}, "forked"),
        ({"step": -1, "forked_from": None}, "forked at step -1"),
        ({"step": 10**40, "forked_from": None}, "forked at step 100000…00000"),
    ],
)
def test_what_is_known_of_a_fork_point(known: dict[str, Any], said: str) -> None:
    tree = FamilyTree(FamilyNode(fork("a", "b", **known)))
    assert tree.text() == f"a  {said}  (3 checkpoints)"
    origin = said.removesuffix(" UTC").replace("forked", "fork").replace(", ", " · ")
    assert f">{origin}</text>" in tree.svg()


# Mermaid


def decoded(label: str) -> str:
    return html.unescape(re.sub(r"#(\d+);", r"&#\1;", label)).replace("\u2060", "")


@drawn(12, 100, families())
def test_mermaid_has_a_vertex_for_each_thread_and_an_edge_for_each_but_one(
    root: FamilyNode,
) -> None:
    nodes = list(root)
    lines = FamilyTree(root).mermaid().splitlines()
    assert lines[0] in ("flowchart LR", "flowchart TD")
    vertices = [match for line in lines if (match := re.match(r" +n(\d+)\(?\[", line))]
    assert [int(match[1]) for match in vertices] == list(range(len(nodes)))
    arrows = [
        match for line in lines if (match := re.match(r' +n(\d+) (-\.?->)\|".*"\| n(\d+)$', line))
    ]
    assert sorted(int(match[3]) for match in arrows) == list(range(1, len(nodes)))
    assert sum(match[2] == "-.->" for match in arrows) == sum(
        node.entry.edge == "clone" for node in nodes
    )
    text = "\n".join(lines)
    assert text.count("]):::current") == sum(n.is_current and n.entry.exists for n in nodes)
    assert text.count("]:::purged") == sum(not n.entry.exists for n in nodes)
    assert max(map(len, lines)) < 700


@drawn(12, 100, ids)
def test_mermaid_labels_have_no_special_characters(thread_id: str) -> None:
    tree = FamilyTree(FamilyNode(fork(thread_id, "parent", parent_checkpoint_id=thread_id)))
    (line,) = (line for line in tree.mermaid().splitlines() if line.startswith("    n0["))
    label = line.removeprefix('    n0["').removesuffix('"]').removesuffix("<br/>3 checkpoints")
    assert not re.search(r"[^\w\s.,:\u0080-\U0010ffff-]", re.sub(r"#\d+;", "", label))
    if len(thread_id) <= 20 and thread_id.isprintable():
        assert decoded(label) == thread_id


def test_mermaid_code() -> None:
    tree = FamilyTree(family([None, 0, 0], ['say "hi" #1', "a-b_c.d", "- <b>"], clones=[2]))
    assert tree.mermaid().splitlines() == [
        "flowchart LR",
        "    accTitle: Family of a thread",
        "    accDescr: 3 threads, 1 fork, 1 clone",
        '    n0["say #34;hi#34; #35;1<br/>3 checkpoints"]',
        '    n1["a-b_c.d<br/>3 checkpoints"]',
        '    n2["#45; #60;b#62;<br/>3 checkpoints"]',
        '    n0 -->|"forked at step 1<br/>2026-11-21 12:01 UTC"| n1',
        '    n0 -.->|"cloned<br/>2026-11-21 12:00 UTC"| n2',
    ]


def test_mermaid_is_drawn_where_there_is_room() -> None:
    assert FamilyTree(family(chain(50))).mermaid().startswith("flowchart TD\n")
    assert FamilyTree(family([None] + [0] * 50)).mermaid().startswith("flowchart LR\n")


# SVG


class Box(NamedTuple):
    """Where something is, in pixels."""

    left: float
    top: float
    right: float
    bottom: float
    said: str

    def overlaps(self, other: Box) -> bool:
        return min(self.right, other.right) > max(self.left, other.left) and min(
            self.bottom, other.bottom
        ) > max(self.top, other.top)


def parsed(root: FamilyNode) -> ElementTree.Element:
    return ElementTree.fromstring(FamilyTree(root).svg())


def tag(element: ElementTree.Element) -> str:
    return element.tag.removeprefix("{http://www.w3.org/2000/svg}")


def having(picture: ElementTree.Element, style: str) -> list[ElementTree.Element]:
    return [found for found in picture.iter() if style in found.get("class", "").split()]


def labels(picture: ElementTree.Element) -> Iterator[Box]:
    """Yield where each text is: as wide as its letters, or as what it is clipped to."""
    clipped = set()
    for inner in picture.iter("{http://www.w3.org/2000/svg}svg"):
        if inner is not picture:
            (text,) = inner
            clipped.add(text)
            left, top, width, height = (
                float(inner.attrib[of]) for of in ("x", "y", "width", "height")
            )
            assert inner.get("overflow") == "hidden"
            yield Box(left, top, left + width, top + height, text.text or "")
    for text in picture.iter("{http://www.w3.org/2000/svg}text"):
        if text not in clipped:
            said = text.text or ""
            styles = text.attrib["class"].split()
            width = len(said) * (8.5 if "fp-title" in styles else 6.2)
            x, y = float(text.attrib["x"]), float(text.attrib["y"])
            if "fp-number" in styles:
                x -= width
            elif "fp-middle" in styles:
                x -= width / 2
            yield Box(x, y - 11, x + width, y + 4, said)


def check_layout(root: FamilyNode) -> None:
    picture = parsed(root)
    width, height = (float(part) for part in picture.attrib["viewBox"].split()[2:])
    assert width <= 1100
    boxes = sorted(labels(picture), key=lambda box: box.top)
    for number, box in enumerate(boxes):
        assert box.left >= 0, box
        assert box.right <= width, box
        assert box.top >= 0, box
        assert box.bottom <= height, box
        for other in boxes[number + 1 : number + 20]:
            assert not box.overlaps(other), (box, other)
    ends = [0.0]
    for circle in picture.iter("{http://www.w3.org/2000/svg}circle"):
        ends += [float(circle.attrib["cx"]) + 6, 0]
        assert 0 <= float(circle.attrib["cy"]) <= height
    assert max(ends) <= width


@pictured
def test_nothing_overlaps_in_svg(root: FamilyNode) -> None:
    check_layout(root)


@drawn(12, 100, families())
def test_nothing_overlaps_in_svg_of_any_family(root: FamilyNode) -> None:
    check_layout(root)


def is_plain(thread_id: str) -> bool:
    return thread_id.isprintable() and not re.search("[\u0300-\u036f]{5}", thread_id)


@drawn(12, 100, families())
def test_svg_has_a_row_for_each_thread_with_its_id_in_full(root: FamilyNode) -> None:
    nodes = list(root)
    picture = parsed(root)
    rows = [found for found in picture if tag(found) == "g" and not found.get("class")]
    tips = [(row[0].text or "").split("\n")[0] for row in rows]
    assert len(tips) == len(nodes)
    full = Counter(node.entry.thread_id for node in nodes if is_plain(node.entry.thread_id))
    assert full <= Counter(tips)
    said = [[text.text for text in row.iter() if tag(text) == "text"] for row in rows]
    assert sum("this thread" in each[1:-3] for each in said) == sum(n.is_current for n in nodes)
    assert sum("purged" in each[1:-3] for each in said) == sum(
        not n.entry.exists and not n.is_current for n in nodes
    )
    origins = [each[-3] or "" for each in said]
    assert origins.count("clone") == sum(n.entry.edge == "clone" for n in nodes)
    for node in nodes:
        if node.entry.edge == "fork":
            moment = f"{node.entry.forked_from:%Y-%m-%d %H:%M}"
            assert f"fork at step {node.entry.step} · {moment}" in origins


@pictured
def test_svg_has_a_dot_and_a_line_for_each_thread(root: FamilyNode) -> None:
    nodes = list(root)
    picture = parsed(root)
    graph = [found for found in picture if found.get("class") == "fp-graph"][-1]
    dots = {kind: len(having(graph, kind)) for kind in ("fp-ring", "fp-mark")}
    crosses = [found for found in having(graph, "fp-cross") if tag(found) == "circle"]
    squares = [found for found in having(graph, "fp-dot") if tag(found) == "rect"]
    plain = [found for found in having(graph, "fp-dot") if tag(found) == "circle"]
    assert dots["fp-ring"] == sum(node.is_current for node in nodes)
    assert len(crosses) == sum(not n.entry.exists and not n.is_current for n in nodes)
    assert len(plain) + len(crosses) + dots["fp-ring"] == len(nodes)
    assert dots["fp-mark"] == sum(node.entry.edge == "fork" for node in nodes)
    assert len(squares) == sum(node.entry.edge == "clone" for node in nodes)
    dashed = [p for p in having(graph, "fp-clone") if "fp-line" in p.attrib["class"].split()]
    assert sum(path.attrib["d"].count("M") for path in dashed) == len(squares)


def test_svg_is_accessible_and_follows_light_and_dark() -> None:
    picture = parsed(small())
    title, description, style = list(picture)[:3]
    assert (picture.get("role"), tag(title), tag(description)) == ("img", "title", "desc")
    assert title.text == "Family of case-7"
    assert description.text == (
        "A tree, one row for each thread: 5 threads, 3 forks, 1 clone, 1 purged. "
        "This thread: case-7c ← this thread  cloned, 2026-11-21 12:00 UTC  (3 checkpoints)."
    )
    assert "@media (prefers-color-scheme:dark)" in (style.text or "")
    rules = [line for line in (style.text or "").splitlines() if line and line[0] not in "@}"]
    assert all(rule.startswith(".fp-family") for rule in rules)  # a page may have several pictures


@pytest.mark.parametrize(
    ("root", "legend"),
    [
        (
            small(),
            [
                "thread",
                "this thread",
                "purged",
                "fork of a checkpoint",
                "clone of a thread",
                "ancestors of this thread",
            ],
        ),
        (family([None], current=0), ["this thread"]),
        (family([None, 0]), ["thread", "fork of a checkpoint"]),
        (family([None, 0], clones=[1], purged=[0]), ["thread", "purged", "clone of a thread"]),
    ],
)
def test_the_legend_has_what_occurs(root: FamilyNode, legend: list[str]) -> None:
    first = having(parsed(root), "fp-graph")[0]
    assert [found.text for found in first.iter() if tag(found) == "text"] == legend


def test_the_tooltip_says_where_a_thread_came_from() -> None:
    assert (
        "<title>case-7b\nmade from case-7\nat checkpoint 1f0c6d0e-0000-6000-8000-00000000abcd"
        "</title>"
    ) in FamilyTree(small()).svg()


# Deep families


def test_a_chain_of_thousands() -> None:
    tree = FamilyTree(family(chain(2000), current=1999))
    lines = tree.text().splitlines()
    assert len(lines) == 2000
    assert lines[-1].startswith("↓ thread-1999 ← this thread  forked at step 1999")
    assert tree.mermaid().count(" -->|") == 1999
    check_layout(tree.root)


@pytest.mark.parametrize("reach", [2, 5, 50, 2000])
def test_no_family_needs_many_lanes(reach: int) -> None:
    size = 2000
    lines = FamilyTree(family(bushy(size, reach))).text().splitlines()
    widths = [len(line) - len(line.lstrip(" │├└─")) for line in lines]
    assert max(widths) <= 3 * (math.log2(size) + 1)


# Differences


def said(**channels: ChannelDiff) -> list[str]:
    return str(StateDiff(channels)).splitlines()


def test_a_list_of_messages() -> None:
    call = {"name": "search", "args": {"q": "rain"}, "id": "1"}
    channel = ChannelDiff(
        "changed",
        added=(
            HumanMessage("hi\nthere"),
            AIMessage("", tool_calls=[call]),
            AIMessage([{"type": "text", "text": "blocks"}, {"type": "image"}, "words"]),
            ToolMessage("x" * 500, tool_call_id="1"),
        ),
        removed=(AIMessage("bye"),),
        changed={"id-1": (AIMessage("good"), AIMessage("better"))},
    )
    assert said(messages=channel) == [
        "messages: 4 added, 1 removed, 1 changed",
        "  - ai: bye",
        "  ~ id-1: ai: good -> ai: better",
        "  + human: hi there",
        "  + ai: search({'q': 'rain'})",
        "  + ai: blocks, <image>, words",
        f"  + tool: {'x' * 93}…",
    ]


def test_a_dict() -> None:
    channel = ChannelDiff(
        "changed",
        added={"new": [1, HumanMessage("hi"), {"a": (1,)}], 7: None},
        removed={"old": b"\0"},
        changed={"key": ("a", "b"), ("t", 1): (1, 2)},
    )
    assert said(files=channel) == [
        "files: 2 added, 1 removed, 2 changed",
        r"  - old: b'\x00'",
        "  ~ key: 'a' -> 'b'",
        "  ~ ('t', 1): 1 -> 2",
        "  + new: [1, human: hi, {'a': (1,)}]",
        "  + 7: None",
    ]


def test_other_values_and_whole_channels() -> None:
    assert said(
        topic=ChannelDiff("changed", before="a\nb", after=None),
        new=ChannelDiff("added", after={"k": 1}),
        old=ChannelDiff("removed", before=[1]),
        log=ChannelDiff("changed", is_rebuilt=True),
        same=ChannelDiff("unchanged"),
        also=ChannelDiff("unchanged", is_rebuilt=True),
    ) == [
        "topic: changed",
        r"  'a\nb' -> None",
        "new: added",
        "  + {'k': 1}",
        "old: removed",
        "  - [1]",
        "log: changed",
        "  graph.get_state shows its value",
        "2 channels unchanged: same, also",
    ]
    assert said() == ["no channels"]


def test_long_texts_are_shown_where_they_differ() -> None:
    same = "y" * 100_000
    shown = "y" * 20
    assert said(
        text=ChannelDiff("changed", before=f"{same}old", after=f"{same}new"),
        messages=ChannelDiff(
            "changed", changed={"1": (AIMessage(f"{same}old"), AIMessage(f"{same}new"))}
        ),
        grown=ChannelDiff("changed", before=same, after=f"{same}!"),
        data=ChannelDiff("changed", before=[[same]], after=[[f"{same}!"]]),
    ) == [
        "text: changed",
        f"  …'{shown}old' -> …'{shown}new'",
        "messages: 1 changed",
        f"  ~ 1: ai: …{shown}old -> ai: …{shown}new",
        "grown: changed",
        f"  …'{shown}' -> …'{shown}!'",
        "data: changed",
        f"  [['{'y' * 96}… (changed in what is not shown)",
    ]


def test_another_order_is_said_to_be_one() -> None:
    assert said(numbers=ChannelDiff("changed")) == [
        "numbers: changed",
        "  the same elements in another order",
    ]


def test_many_changes_are_counted() -> None:
    lines = said(numbers=ChannelDiff("changed", added=tuple(range(500))))
    assert lines[:2] == ["numbers: 500 added", "  + 0"]
    assert lines[-1] == "  + … and 480 more"
    assert len(lines) == 22


class Awkward:
    """A value of whom nothing can be asked."""

    def __repr__(self) -> str:
        raise RuntimeError

    @property
    def content(self) -> str:
        raise RuntimeError


def test_values_that_cannot_be_shown() -> None:
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    assert said(
        a=ChannelDiff("changed", before=Awkward(), after=10**5000),
        b=ChannelDiff("added", after=deep),
    ) == ["a: changed", "  <Awkward> -> <int>", "b: added", "  + [[[[[…]]]]]"]


values = st.recursive(
    st.none() | st.text() | st.integers() | st.binary() | st.builds(HumanMessage, st.text()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
many = st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3)
pairs = st.dictionaries(st.text(), st.tuples(values, values), max_size=3)
statuses = st.sampled_from(["added", "removed", "changed", "unchanged"])
diffs = st.builds(ChannelDiff, statuses, values, values, many, many, pairs, st.booleans())


@drawn(12, 100, st.dictionaries(st.text(), diffs, max_size=3))
def test_differences_of_any_values(channels: dict[str, ChannelDiff]) -> None:
    difference = StateDiff(channels)
    lines = str(difference).splitlines()
    assert all(line.replace("\u200d", "").isprintable() for line in lines)
    assert max(map(len, lines)) <= 2 * 100 + 40 + 40
    table = ElementTree.fromstring(difference._repr_html_())
    rows = [["".join(cell.itertext()) for cell in row] for row in table]
    differing = [name for name, each in channels.items() if each.status != "unchanged"]
    assert len(rows) == len(differing) + (len(differing) < len(channels) or not channels)
    assert sum(line.startswith("  ") for line in lines) == sum(
        len(row.findall(".//div")) for row in table
    )


def test_html() -> None:
    difference = StateDiff(
        {
            "<b>": ChannelDiff("changed", added={"k": "<script>"}, changed={"c": (1, 2)}),
            "log": ChannelDiff("changed", is_rebuilt=True),
            "same": ChannelDiff("unchanged"),
        }
    )
    shown = difference._repr_html_()
    assert "<script>" not in shown
    assert "<style>" not in shown
    table = ElementTree.fromstring(shown)
    assert [[" ".join(cell.itertext()).strip() for cell in row] for row in table] == [
        ["<b>", "1 added, 1 changed", "~ c: 1 -> 2 + k: '<script>'"],
        ["log", "changed", "graph.get_state shows its value"],
        ["1 channel unchanged: same"],
    ]
