"""Whatever is sent, the server answers: with what was asked for, or why not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from calling import calling
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.server import create_app
from requesting import Operation, operations_of
from served import chat, said

IDS = [
    *("nobody", "%00", "%ED%A0%80", "%FF", "a%2Fb", "%2E%2E", "%252F", "-1", "$where"),
    *("x" * 2000, "x" * 9000, "%F0%9F%98%80", "a%0Ab", "'%20OR%201=1", "__start__"),
]
DEEP = b'{"a":' * 3000 + b"1" + b"}" * 3000
BODIES = [
    *(b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", DEEP, b"[" * 100_000),
    *(b'{"limit": -1}', b'{"limit": 1e400}', b'{"limit": 99999999999999999999999}'),
    *(b'{"metadata": {"\\u0000": 1}}', b'{"metadata": {"a": 123456789012345678901234567890}}'),
    *(b'{"ids": ["\\u0000", ""]}', b'{"thread_ids": ["\\u0000"]}', b'{"values": {"": ""}}'),
    *(b'{"values": {"turns": 1e308}}', b'{"values": 1}', b'{"values": {"messages": 1}}'),
    *(b'{"values": {"messages": [{"role": "nobody"}]}}', b'{"values": null, "as_node": ""}'),
    *(b'{"values": {"turns": 1}, "as_node": "__end__"}', b'{"values": 1, "as_node": "__copy__"}'),
    *(b'{"checkpoint": {"checkpoint_id": "\\u0000"}}', b'{"checkpoint": {"checkpoint_id": ""}}'),
    *(b'{"checkpoint": {"checkpoint_ns": "a|b:c"}}', b'{"checkpoint": {"thread_id": 1}}'),
    *(
        b'{"before": ""}',
        b'{"before": {"configurable": 1}}',
        b'{"before": {"checkpoint_id": null}}',
    ),
    *(b'{"extract": {"a": "values.a[99999999]"}}', b'{"supersteps": [{"updates": []}]}'),
    *(b'{"supersteps": [{"updates": [{"values": 1}]}]}', b'{"ttl": 1e-300}', b'{"ttl": 1e9}'),
    *(b'{"keep": 99999999999999999999}', b'{"steps": 1e30}', b'{"new_thread_id": "\\u0000"}'),
    *(b'{"max_age_days": 1e300}', b'{"keep_tags": ["\\u0000"]}', b'{"checkpoint_id": "x"}'),
    *(b'{"channels": [""], "since": 99999999999999999999}', b'{"id": 1, "method": "\\u0000"}'),
]
RUNS = [
    *(
        '"input": 1',
        '"input": []',
        '"input": {"messages": [1]}',
        '"input": {"messages": "\\u0000"}',
    ),
    *('"command": {"goto": "nowhere"}', '"command": {"goto": 1}', '"command": {"update": 1}'),
    *(
        '"command": {}',
        '"command": {"goto": {"node": "answer", "input": 1}}',
        '"context": {"a": 1}',
    ),
    *('"config": {"configurable": 1}', '"config": {"recursion_limit": 1e30, "tags": [1]}'),
    *(
        '"config": {"configurable": {"__pregel_send": 1, "thread_id": "x"}}',
        '"metadata": {"a": []}',
    ),
    *('"checkpoint_id": "\\u0000"', '"stream_mode": []', '"interrupt_before": ["nowhere"]'),
]
BODIES += [f'{{"assistant_id": "chat", {part}}}'.encode() for part in RUNS]
BODIES += [
    f'{{"id": 1, "method": "run.start", "params": {{"assistant_id": "chat", {part}}}}}'.encode()
    for part in RUNS
]
QUERIES = [
    *("limit=-1", "limit=99999999999999999999", "offset=99999999999999999999", "before=%00"),
    *("before=%ED%A0%80", "select=values.%00", "subgraphs=maybe", "include=%00", "a=%00&b=%FF"),
    *("other=%00&a=x", "wait=x", "status=%00", "xray=%C2%B2", "xray=99999999999", "stream_mode=x"),
    *("until=9999-12-31", "since=0001-01-01", "cursor=%00", "page=-1", "channel=%00"),
]
ENDLESS = (("GET", "stream"), ("POST", "events"))


def requests_of(operation: Operation) -> Iterator[tuple[str, bytes | None]]:
    """Yield addresses and bodies of bad requests to an operation."""

    def place(thread_id: str, part: str) -> str:
        text = operation.path.replace("{thread_id}", thread_id)
        for name in ("run_id", "checkpoint_id", "assistant_id"):
            text = text.replace(f"{{{name}}}", part)
        return text

    body = None if operation.method in ("GET", "DELETE") else b"{}"
    for id_ in IDS:
        yield place(id_, "chat"), body
        yield place("t" if operation.method != "DELETE" else "nobody", id_), body
    if operation.method != "DELETE":
        for query in QUERIES:
            yield f"{place('t', 'chat')}?{query}", body
    if body is not None:
        for body in BODIES:
            yield place("t", "chat"), body


@pytest.mark.parametrize("share", [40, pytest.param(1, marks=pytest.mark.slow)])
async def test_each_bad_request_is_answered(share: int, saver: ForkpointSaver) -> None:
    app = create_app(saver, {"chat": chat()})
    asked = 0
    async with calling(app, headers={"content-type": "application/json"}) as client:
        run = {"assistant_id": "chat", "input": said("you"), "if_not_exists": "create"}
        await client.post("/threads/t/runs/wait", json=run)
        for operation in operations_of(app):
            if (operation.method, operation.path.rpartition("/")[2]) in ENDLESS:
                continue
            await client.post("/threads", json={"thread_id": "t", "if_exists": "do_nothing"})
            for number, (place, body) in enumerate(requests_of(operation)):
                if (number + asked) % share == 0:
                    answer = await client.request(operation.method, place, content=body)
                    check(answer, operation, body)
                asked += 1
        assert (await client.get("/ok")).json() == {"ok": True}
    assert asked > 2000


def check(answer: httpx.Response, operation: Operation, body: Any) -> None:
    asked = operation.method, operation.path, str(answer.url)[:200], body and body[:80]
    assert answer.status_code < 500, asked
    is_page = operation.path.startswith("/pages")
    if answer.status_code >= 400 and not is_page:
        assert isinstance(answer.json()["detail"], str), asked


@pytest.mark.parametrize(
    ("place", "body", "status"),
    [
        ("/threads/t/state", {"values": {"messages": 1}}, 400),
        ("/threads/t/runs/wait", {"assistant_id": "chat", "command": {"goto": 1}}, 422),
        ("/threads/t/commands", {"id": "1", "method": "run.start"}, 400),
        (f"/threads/t/runs/{quote('²')}/cancel", {}, 404),
    ],
)
async def test_a_refusal_stores_nothing(
    place: str, body: Any, status: int, saver: ForkpointSaver
) -> None:
    async with calling(create_app(saver, {"chat": chat()})) as client:
        await client.post("/threads", json={"thread_id": "t"})
        before = (await client.get("/threads/t")).json()
        answer = await client.post(place, json=body)
        assert answer.status_code == status
        assert answer.json()["detail"]
        assert (await client.get("/threads/t")).json() == before
