"""Long lists and dicts of scalars are packed and cut in bulk, and cost what an edit changes."""

from __future__ import annotations

import enum
import random
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st

from checking import drawn
from forkpoint import SafeSerializer
from forkpoint.encoding.chunk import Chunks
from forkpoint.encoding.codec import Codec
from forkpoint.encoding.entries import DICT, LIST, Entry

LENGTH = 100_000


class Text(str):
    pass


class Number(enum.IntEnum):
    ONE = 1


def codec() -> Codec:
    return Codec(SafeSerializer())


def encode(codec: Codec, value: Any) -> tuple[Entry, Chunks]:
    encoded, manifest = codec.encode_checkpoint({"channel_values": {"c": value}})
    return manifest["c"], encoded.chunks


def round_trip(codec: Codec, value: Any) -> Any:
    entry, chunks = encode(codec, value)
    stored = {digest: codec.encrypt_chunk(chunk) for digest, chunk in chunks.items()}
    return codec.decode_entry(entry, stored)


def rewritten(codec: Codec, base: Any, edited: Any) -> int:
    """Return the bytes that an edit adds to what is stored."""
    before, after = encode(codec, base)[1], encode(codec, edited)[1]
    return sum(
        len(refs) + len(content)
        for digest, (refs, content) in after.items()
        if digest not in before
    )


def elements(make: Callable[[random.Random, int], Any]) -> list[Any]:
    source = random.Random(1)
    return [make(source, n) for n in range(LENGTH)]


LISTS: dict[str, Callable[[random.Random, int], Any]] = {
    "integers in order": lambda _, n: n,
    "texts": lambda _, n: f"text number {n}",
    "random numbers": lambda source, _: source.random(),
    "truths": lambda source, _: source.random() < 0.5,
    "the same again and again": lambda _, n: 0,
    "a period": lambda _, n: n % 1000,
    "a mixture": lambda source, n: source.choice([n, str(n), None, True, n / 7, b"\xc4\x00"]),
}
SOME_LISTS = [
    name if number % 3 == 0 else pytest.param(name, marks=pytest.mark.slow)
    for number, name in enumerate(LISTS)
]


@pytest.mark.parametrize("name", SOME_LISTS)
def test_an_edit_of_a_long_list_rewrites_a_few_runs(name: str) -> None:
    base = elements(LISTS[name])
    middle = LENGTH // 3
    edits = {
        "append": [*base, "new"],
        "change": [*base[:middle], "new", *base[middle + 1 :]],
        "insert": ["new", *base],
        "delete": [*base[:middle], *base[middle + 1 :]],
    }

    for edited in edits.values():
        # A run has at most 16 KB, a node 4 KB, and the next run may begin elsewhere.
        assert rewritten(codec(), base, edited) < 50_000
    assert round_trip(codec(), base) == base


def test_an_edit_of_a_long_dict_rewrites_a_few_runs() -> None:
    base = {f"key {n}": n for n in range(LENGTH)}
    fewer = {key: value for key, value in base.items() if key != "key 500"}

    for edited in ({**base, "new": 1}, {**base, "key 500": "new"}, {"new": 1, **base}, fewer):
        assert rewritten(codec(), base, edited) < 50_000
    assert list(round_trip(codec(), base).items()) == list(base.items())


@pytest.mark.parametrize(
    "value",
    [list(range(LENGTH)), [f"text {n}" for n in range(LENGTH)], {str(n): n for n in range(LENGTH)}],
    ids=["integers", "texts", "dict"],
)
def test_no_element_takes_a_step_of_its_own(value: Any) -> None:
    steps = 0

    def count(_: object, event: str, __: object) -> None:
        nonlocal steps
        steps += event in ("call", "c_call")

    present = codec()
    sys.setprofile(count)
    try:
        entry, _ = encode(present, value)
    finally:
        sys.setprofile(None)

    assert entry.kind == (DICT if isinstance(value, dict) else LIST)
    assert steps < LENGTH / 5


ODD = [
    True,
    1.0,
    None,
    b"\xc4\x01",
    bytearray(b"x"),
    Text("text"),
    Number.ONE,
    2**70,
    -(2**63),
    "\ud800",
    (1, 2),
    [1, [2]],
    {"a": 1},
    "long" * 40_000,
    [1] * 9000,
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: f"{type(odd).__name__} {str(odd)[:9]!a}")
@pytest.mark.parametrize("make", [lambda n: n, lambda n: f"text {n}"], ids=["integers", "texts"])
def test_an_element_that_is_not_like_the_others_comes_back_as_it_was(
    odd: Any, make: Callable[[int], Any]
) -> None:
    many = [make(n) for n in range(2000)]
    many.insert(700, odd)
    keyed = {str(number): element for number, element in enumerate(many)}

    for value in (many, keyed, {**keyed, 5: odd}, {None: odd, **keyed}):
        restored = round_trip(codec(), value)
        assert restored == value
        pairs = zip(values_of(restored), values_of(value), strict=True)
        assert all(type(one) is type(other) for one, other in pairs)
        assert list(restored) == list(value)


def values_of(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


@drawn(
    15,
    150,
    st.integers(0, 2**32),
    st.lists(
        st.tuples(st.sampled_from(["append", "cut", "insert", "change"]), st.integers(1, 900)),
        min_size=1,
        max_size=8,
    ),
    st.booleans(),
)
def test_runs_do_not_depend_on_what_was_cut_before(
    seed: int, edits: list[tuple[str, int]], is_dict: bool
) -> None:
    edit_and_compare(seed, edits, is_dict)


def test_a_run_that_no_mark_ends_is_cut_anew_if_less_follows() -> None:
    """With more after it, it was too long, and without it is not."""
    edits = [("cut", 191), ("insert", 1), ("append", 210), ("insert", 1), ("cut", 1)]
    edit_and_compare(682, edits, is_dict=True)


def edit_and_compare(seed: int, edits: list[tuple[str, int]], is_dict: bool) -> None:
    """Encode a value after each edit, by a codec that knows it and by one that does not."""
    source = random.Random(seed)
    value: list[Any] = [source.randrange(source.choice([100, 10**6, 10**15])) for _ in range(1500)]
    used = codec()
    for edit, amount in edits:
        place = source.randrange(len(value) + 1)
        match edit:
            case "append":
                value = value + [f"text {n}" for n in range(amount)]
            case "cut":
                value = value[:-amount]
            case "insert":
                value = [*value[:place], amount, *value[place:]]
            case _:
                value = [*value[:place], *[amount / 7] * 3, *value[place + 3 :]]
        whole: Any = {f"key {n}": each for n, each in enumerate(value)} if is_dict else value
        assert encode(used, whole) == encode(codec(), whole)
        assert round_trip(used, whole) == whole
