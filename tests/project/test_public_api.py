"""The public names and signatures are those in `public_api.txt`, beside this file.

When a change of them is meant, write that file anew and look at the difference:

    python tests/project/test_public_api.py
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import forkpoint

STORED = Path(__file__).with_name("public_api.txt")
SPECIAL_METHODS = {
    *("__init__", "__enter__", "__exit__", "__aenter__", "__aexit__"),
    *("__iter__", "__next__", "__len__", "__getitem__"),
}
MADE_BY_THE_PACKAGE = {forkpoint.Lease, forkpoint.Sweeper, forkpoint.StoredObject}
"""Classes whose constructors are not for users."""


def is_ours(value: object) -> bool:
    return getattr(value, "__module__", "").partition(".")[0] == "forkpoint"


def parameter_text(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    annotation = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{stars}{parameter.name}{annotation}{default}"


def signature_of(function: Callable[..., object]) -> str:
    """Return a signature as it is written: on one line, or with one line for each parameter."""
    signature = inspect.signature(function)
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    parts = [parameter_text(parameter) for parameter in signature.parameters.values()]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        parts.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    is_short = sum(map(len, parts)) <= 60
    text = (
        ", ".join(parts) if is_short else "".join(f"\n        {part}," for part in parts) + "\n    "
    )
    returned = signature.return_annotation
    return f"({text})" if returned is signature.empty else f"({text}) -> {returned}"


def members_of(public: type) -> Iterator[str]:
    """Yield a text for each public member that a class of ours defines."""
    special = SPECIAL_METHODS - {"__init__"} if public in MADE_BY_THE_PACKAGE else SPECIAL_METHODS
    members: dict[str, object] = {
        name: member
        for base in reversed(public.__mro__)
        if is_ours(base)
        for name, member in vars(base).items()
        if not name.startswith("_") or name in special
    }
    for name, member in sorted(members.items()):
        if isinstance(member, property):
            yield f"    {name} (property)"
        elif isinstance(member, staticmethod | classmethod):
            yield f"    {name}{signature_of(member.__func__)} ({type(member).__name__})"
        elif inspect.isfunction(member):
            is_async = inspect.iscoroutinefunction(member)
            yield f"    {'async ' if is_async else ''}{name}{signature_of(member)}"
        else:
            yield f"    {name}"


def public_api() -> str:
    """Return a text of all public names, their classes' members and signatures."""
    lines: list[str] = []
    for name in sorted([*forkpoint.__all__, "MongoDBSaver"]):
        public = getattr(forkpoint, name)
        if inspect.isfunction(public):
            lines.append(f"{name}{signature_of(public)}")
            continue
        if not inspect.isclass(public):
            lines.append(f"{name} = {public!r}")
            continue
        bases = [
            base.__name__
            for base in public.__mro__[1:]
            if base.__module__ == "builtins" or base.__name__ in forkpoint.__all__
        ]
        bases.remove("object")
        lines.append(f"class {name}({', '.join(bases)})" if bases else f"class {name}")
        lines += members_of(public)
    return "\n".join(lines) + "\n"


def test_the_public_names_and_signatures_are_as_stored() -> None:
    assert public_api() == STORED.read_text(), f"if this is meant: python {__file__}"


if __name__ == "__main__":
    STORED.write_text(public_api())
