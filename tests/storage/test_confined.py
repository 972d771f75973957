"""A storage that is confined to an owner says of each primitive how it is confined."""

from __future__ import annotations

import inspect
from abc import ABC
from typing import get_type_hints

import pytest

from forkpoint.storage import confined, interface
from forkpoint.storage.interface import Session

ROLES: dict[str, type[ABC]] = {
    name: role
    for name, role in get_type_hints(Session).items()
    if inspect.isclass(role) and issubclass(role, ABC)
}
PASSED_ON = {"copies", "chunks", "collections", "secrets"}
"""The roles that a confined session has as they are: they take what was found before."""


def test_each_role_is_small() -> None:
    classes = [*ROLES.values(), interface.Session, interface.Storage]
    assert max(len(role.__abstractmethods__) for role in classes) <= 12
    assert len(ROLES) == 11


def methods_of(role: type) -> set[str]:
    return {name for name in vars(role) if not name.startswith("_")}


@pytest.mark.parametrize("name", sorted(PASSED_ON))
def test_a_role_that_is_passed_on_looks_for_no_thread(name: str) -> None:
    for method in methods_of(ROLES[name]):
        parameters = inspect.signature(getattr(ROLES[name], method)).parameters
        assert not {"thread_id", "run_ids", "owner", "query", "selection"} & set(parameters), method


def test_each_method_of_the_other_roles_is_confined_by_name() -> None:
    """None is inherited, also where the interface has something for backends that lack it."""
    for name in ROLES.keys() - PASSED_ON:
        role = getattr(confined, f"_Confined{name.title()}")
        assert methods_of(ROLES[name]) <= methods_of(role), role
    assert methods_of(interface.Storage) <= methods_of(confined.ConfinedStorage)
