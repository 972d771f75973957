"""The upstream conformance suite, on every kind of database and serializer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from uuid import uuid4

import pytest
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from forkpoint import SqliteSaver
from forkpoint.saver.saver import ForkpointSaver
from stores import Store

KEY = b"0123456789abcdef"


def encrypted() -> SerializerProtocol:
    return EncryptedSerializer.from_pycryptodome_aes(key=KEY)


SERIALIZERS = pytest.mark.parametrize(
    "serde",
    [
        pytest.param(lambda: None, id="default"),
        pytest.param(encrypted, id="encrypted"),
        pytest.param(JsonPlusSerializer, id="json-plus", marks=pytest.mark.slow),
    ],
)


async def check(fresh_saver: Callable[[], ForkpointSaver]) -> None:
    @checkpointer_test(name=f"forkpoint-{uuid4()}")
    async def fresh() -> AsyncIterator[ForkpointSaver]:
        async with fresh_saver() as saver:
            yield saver

    report = await validate(fresh)

    failures = {name: result.failures for name, result in report.results.items()}
    assert {name: result.passed for name, result in report.results.items()} == dict.fromkeys(
        failures, True
    ), failures
    assert len(report.results) == 8


@SERIALIZERS
async def test_the_conformance_suite_passes_for_all_capabilities(
    new_store: Callable[[], Store], serde: Callable[[], SerializerProtocol | None]
) -> None:
    await check(lambda: new_store().saver(serde=serde()))


async def test_the_conformance_suite_passes_in_memory() -> None:
    await check(lambda: SqliteSaver(":memory:"))
