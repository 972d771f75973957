"""The upstream conformance suite, on every kind of database and serializer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import uuid4

import pytest
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from forkpoint import SqliteSaver

KEY = b"0123456789abcdef"


def encrypted() -> SerializerProtocol:
    return EncryptedSerializer.from_pycryptodome_aes(key=KEY)


@pytest.mark.parametrize(
    "serde",
    [lambda: None, encrypted, JsonPlusSerializer],
    ids=["default", "encrypted", "json-plus"],
)
@pytest.mark.parametrize("where", ["file", ":memory:"])
async def test_all_eight_capabilities_pass(
    where: str, serde: Callable[[], SerializerProtocol | None], tmp_path: Path
) -> None:
    @checkpointer_test(name=f"forkpoint-{uuid4()}")
    async def fresh() -> AsyncIterator[SqliteSaver]:
        name = where if where == ":memory:" else str(tmp_path / f"{uuid4()}.db")
        async with SqliteSaver.from_conn_string(name, serde=serde(), durability="normal") as saver:
            yield saver

    report = await validate(fresh)

    failures = {name: result.failures for name, result in report.results.items()}
    assert {name: result.passed for name, result in report.results.items()} == dict.fromkeys(
        failures, True
    ), failures
    assert len(report.results) == 8
