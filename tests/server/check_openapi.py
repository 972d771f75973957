"""The description that the application serves of itself: it is answered as that says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from forkpoint import SqliteSaver
from forkpoint.server import ApiKeys, create_app
from served import chat

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
ENDLESS = [("get", "stream"), ("post", "events")]


@pytest.fixture
def description(tmp_path: Path) -> Iterator[Any]:
    with SqliteSaver(tmp_path / "threads.db") as saver:
        app = create_app(saver, {"chat": chat()}, ApiKeys({"key": "owner"}))
        key = {"x-api-key": "key"}
        yield schemathesis.openapi.from_asgi("/openapi.json", app, headers=key)


@pytest.mark.parametrize("examples", [1, pytest.param(200, marks=pytest.mark.slow)])
def test_whatever_is_asked_is_answered_as_described(examples: int, description: Any) -> None:
    asked = 0
    for found in description.get_all_operations():
        operation = found.ok()
        if (operation.method, operation.path.rpartition("/")[2]) in ENDLESS:
            continue  # it may not end
        asked += 1

        @settings(max_examples=examples, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            case.call_and_validate(checks=CHECKS, headers={"x-api-key": "key"})

        ask()
    assert asked > 30
