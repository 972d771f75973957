"""What is kept of runs for those who come back: not without end, whatever their states take."""

from __future__ import annotations

import pytest

from calling import calling
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.server import create_app, log
from forkpoint.server.log import Log
from served import Client, chat, said, serving


@pytest.mark.parametrize("size", [1, 10, 1000])
async def test_a_log_keeps_its_last_entries(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "KEPT", 20)
    monkeypatch.setattr(log, "KEPT_CHARACTERS", 100)
    entries: Log[int] = Log()
    follower = entries.follow()
    for number in range(1, 101):
        entries.append(number, size)
        if number <= 10:
            assert await anext(follower) == (number, number)
        assert entries.characters <= max(2 * 100, size)
    entries.end()
    kept = [entry async for entry in entries.follow()]
    assert kept == [(number, number) for number in range(101 - len(kept), 101)]
    assert len(kept) >= {1: 20, 10: 10, 1000: 1}[size]
    assert len(kept) <= 40
    assert [entry async for entry in follower] == kept  # who is slow goes on with what is there
    assert entries.last == 100


async def test_of_large_runs_the_last_ones_are_known(
    saver: ForkpointSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forkpoint.server.runs.CHARACTERS_KEPT", 10_000)
    app = create_app(saver, {"chat": chat()})
    with serving(app) as address:
        client = Client(address, "async")
        for number in range(6):
            thread_id = str(number)
            await client.threads.create(thread_id=thread_id)
            await client.runs.wait(thread_id, "chat", input=said("x" * 3000))
            await client.threads.get_state(thread_id)
        known = [await client.runs.list(str(number)) for number in range(6)]
        assert [len(runs) for runs in known[-2:]] == [1, 1]  # the last one had not ended by then
        assert known[0] == []
        again = await client.runs.join_stream("5", known[5][0]["run_id"])
        assert again[-1].data["turns"] == 1
        runs = app.state.forkpoint.runs
        kept = [streams.characters for streams in runs._streams.values()]
        assert len(kept) < 6


async def test_of_all_owners_together_the_last_runs_are_known(
    saver: ForkpointSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forkpoint.server.runs.RUNS_KEPT_OF_ALL", 2)
    app = create_app(saver, {"chat": chat()}, lambda request: str(request.headers["x-user"]))
    runs = app.state.forkpoint.runs
    run = {"assistant_id": "chat", "input": said("you"), "if_not_exists": "create"}
    async with calling(app) as client:
        for owner in "abcdef":
            await client.post(f"/threads/{owner}/runs/wait", json=run, headers={"x-user": owner})
    assert [each.owner for each in runs._runs.values()] == ["d", "e", "f"]
    assert {owner for owner, _ in runs._streams} == {"d", "e", "f"}


async def test_of_a_run_that_has_ended_its_last_state_is_kept_and_not_its_input(
    saver: ForkpointSaver,
) -> None:
    app = create_app(saver, {"chat": chat()})
    run = {"assistant_id": "chat", "input": said("x" * 3000), "if_not_exists": "create"}
    async with calling(app) as client:
        await client.post("/threads/t/runs/wait", json={**run, "stream_mode": ["custom"]})
    (kept,) = app.state.forkpoint.runs._runs.values()
    assert kept.characters > 6000
    assert kept.body.input is None
    assert kept.values["turns"] == 1
