"""Who is answered, and with what: owners, other sites, other machines, and bad input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from calling import calling
from forkpoint import InvalidInput, ThreadCatalog
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.server import ApiKeys, create_app
from served import Client, chat, said, serving


@pytest.fixture
def owned(saver: ForkpointSaver) -> Iterator[str]:
    """The address of a server with two owners, and one whose key is of the first one as well."""
    keys = ApiKeys({"key-a": "a", "key-b": "b", "another": "a"})
    with serving(create_app(saver, {"chat": chat()}, keys)) as address:
        yield address


async def test_an_owner_sees_their_own_threads_only(
    owned: str, world: str, saver: ForkpointSaver
) -> None:
    first = Client(owned, world, api_key="key-a")
    second = Client(owned, world, api_key="key-b")
    same = Client(owned, world, api_key="another")
    await first.threads.create(thread_id="t", metadata={"m": 1})
    run = await first.runs.create("t", "chat", input=said("you"))
    await first.runs.join("t", run["run_id"])
    assert (await same.threads.get("t"))["values"]["turns"] == 1
    assert ThreadCatalog(saver, owner="a").count() == 1
    assert await second.threads.search() == []
    assert await second.threads.count() == 0
    assert await second.threads.prune(["t"]) == {"pruned_count": 0}
    head = (await first.threads.get_state("t"))["checkpoint"]
    calls = [
        lambda c: c.threads.get("t"),
        lambda c: c.threads.update("t", metadata={"m": 2}),
        lambda c: c.threads.delete("t"),
        lambda c: c.threads.get_state("t"),
        lambda c: c.threads.get_state("t", checkpoint=head),
        lambda c: c.threads.get_history("t"),
        lambda c: c.threads.update_state("t", {"turns": 1}),
        lambda c: c.runs.wait("t", "chat", input=said("you")),
        lambda c: c.runs.create("t", "chat", input=said("you")),
        lambda c: c.runs.list("t"),
        lambda c: c.runs.get("t", run["run_id"]),
        lambda c: c.runs.join("t", run["run_id"]),
        lambda c: c.runs.cancel("t", run["run_id"]),
        lambda c: c.runs.cancel_many(thread_id="t", run_ids=[run["run_id"]]),
        lambda c: c.runs.delete("t", run["run_id"]),
    ]
    for call in calls:
        with pytest.raises(httpx.HTTPStatusError) as refused:
            await call(second)
        assert refused.value.response.status_code == 404
    for call in (lambda c: c.threads.create(thread_id="t"), lambda c: c.threads.copy("t")):
        with pytest.raises(httpx.HTTPStatusError) as refused:
            await call(second)
        assert refused.value.response.status_code == 409
    assert (await first.threads.get("t"))["metadata"]["m"] == 1
    assert len(await first.threads.get_history("t")) == 3


ROUTES = [
    ("POST", "/fork", {}),
    ("GET", "/lineage", None),
    ("GET", "/family", None),
    ("GET", "/family.svg", None),
    ("GET", "/diff?a=x", None),
    ("POST", "/rollback", {}),
    ("POST", "/trim", {"keep": 1}),
    ("POST", "/purge", {}),
    ("GET", "/stats", None),
]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
async def test_what_is_beyond_the_platform_is_the_owners_as_well(
    method: str, path: str, body: Any, saver: ForkpointSaver
) -> None:
    ThreadCatalog(saver, owner="a").create("t")
    app = create_app(saver, authenticate=ApiKeys({"key-b": "b"}))
    async with calling(app, headers={"x-api-key": "key-b"}) as client:
        answer = await client.request(method, f"/forkpoint/threads/t{path}", json=body)
        missing = await client.request(method, f"/forkpoint/threads/nobody{path}", json=body)
    assert answer.status_code == missing.status_code == 404
    assert answer.text.replace("'t'", "") == missing.text.replace("'nobody'", "")
    assert ThreadCatalog(saver, owner="a").count() == 1


@pytest.mark.parametrize("key", [None, "", "key", "key-a-", "KEY-A", "key-a"])
async def test_without_a_key_nothing_is_answered(key: str | None, saver: ForkpointSaver) -> None:
    app = create_app(saver, authenticate=ApiKeys({"key-a": "a"}))
    async with calling(app, headers={} if key is None else {"x-api-key": key}) as client:
        answer = await client.post("/threads/search", json={})
        assert answer.status_code == (200 if key == "key-a" else 401)
        assert (await client.get("/ok")).json() == {"ok": True}
        assert (await client.head("/ok")).status_code == 200


async def test_any_function_tells_who_asks(saver: ForkpointSaver) -> None:
    async def authenticate(request: Request) -> str:
        if request.headers.get("x-fails"):
            raise RuntimeError("secret")
        return request.headers.get("x-user", "")

    app = create_app(saver, authenticate=authenticate)
    async with calling(app) as client:
        assert (await client.post("/threads", json={})).status_code == 403
        failed = await client.post("/threads", json={}, headers={"x-fails": "1"})
        assert (failed.status_code, "secret" in failed.text) == (403, False)
        made = await client.post("/threads", json={}, headers={"x-user": "u"})
    assert ThreadCatalog(saver, owner="u").get(made.json()["thread_id"]) is not None


async def test_without_authentication_this_machine_alone_is_answered(
    saver: ForkpointSaver,
) -> None:
    app = create_app(saver)
    elsewhere = httpx.ASGITransport(app, client=("10.0.0.1", 1))
    async with httpx.AsyncClient(transport=elsewhere, base_url="http://localhost") as client:
        assert (await client.post("/threads", json={})).status_code == 403
    hosts = {"evil.example": 403, "[": 403, "": 403, "127.0.0.1": 200, "[::1]:80": 200}
    for host, status in hosts.items():
        async with calling(app, headers={"host": host}) as client:
            assert (await client.post("/threads", json={})).status_code == status
    assert ThreadCatalog(saver).count() == 2


async def test_pages_of_other_sites_change_nothing(saver: ForkpointSaver) -> None:
    app = create_app(saver, origins=["https://chat.example"])
    statuses = {}
    for origin in ("https://evil.example", "null", "https://chat.example", "http://localhost"):
        async with calling(app, headers={"origin": origin}) as client:
            answer = await client.post("/threads", json={})
            statuses[origin] = answer.status_code
            allowed = answer.headers.get("access-control-allow-origin")
            assert allowed == (origin if origin == "https://chat.example" else None)
    assert list(statuses.values()) == [403, 403, 200, 200]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"[]", 422),
        (b'{"limit": 0}', 422),
        (b'{"limit": 1001}', 422),
        (b'{"limit": "1"}', 422),
        (b'{"offset": -1}', 422),
        (b'{"offset": 100000}', 422),
        (b'{"status": "lost"}', 422),
        (b'{"metadata": []}', 422),
        (b'{"metadata": {"a": NaN}}', 422),
        (b'{"sort_by": "x"}', 422),
        (b'{"metadata": ' + b'{"a": ' * 1000 + b"9" * 19 + b"}" * 1001, 422),
        (b'{"metadata": {"a": ' + b"9" * 5000 + b"}}", 422),
        (b'{"metadata": ' + b'{"a": ' * 5000 + b"1" + b"}" * 5001, 422),
        (b'{"metadata": {"a": "' + b"x" * 2_000_000 + b'"}}', 413),
        (b'{"unknown": 1}', 200),
        (b'{"metadata": {"$where": "1"}}', 200),
    ],
)
async def test_a_bad_body_is_refused(body: bytes, status: int, saver: ForkpointSaver) -> None:
    app = create_app(saver, max_body_bytes=1_000_000)
    headers = {"content-type": "application/json"}
    async with calling(app, headers=headers) as client:
        answer = await client.post("/threads/search", content=body)
        assert answer.status_code == status
        assert status == 200 or isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize(
    "body",
    [
        {"metadata": {"a": "\ud800"}},
        {"metadata": {"a\0": "b\0"}},
        {"thread_id": "\ud800"},
        {"thread_id": "a\0b"},
        {"ttl": 0},
        {"ttl": 1e300},
        {"metadata": {"__x": 1}},
        {"thread_id": ""},
    ],
)
async def test_what_a_thread_is_made_with_is_stored_or_refused(
    body: Any, saver: ForkpointSaver
) -> None:
    async with calling(create_app(saver)) as client:
        answer = await client.post(
            "/threads",
            content=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
    assert answer.status_code in (200, 422)
    assert ThreadCatalog(saver).count() == (answer.status_code == 200)


async def test_a_whole_number_is_stored_as_it_is(saver: ForkpointSaver) -> None:
    large = 123456789012345678901234567890
    run = {"assistant_id": "chat", "input": {"messages": said("you")["messages"], "turns": large}}
    async with calling(create_app(saver, {"chat": chat()})) as client:
        await client.post("/threads", json={"thread_id": "t", "metadata": {"n": -large}})
        assert (await client.post("/threads/t/runs/wait", json=run)).json()["turns"] == large + 1
        found = await client.post("/threads/search", json={"metadata": {"n": -large}})
        (thread,) = found.json()
    assert (thread["metadata"]["n"], thread["values"]["turns"]) == (-large, large + 1)


def test_the_description_has_the_limits_of_numbers(saver: ForkpointSaver) -> None:
    described = create_app(saver).openapi()["components"]["schemas"]
    limit = described["ThreadSearch"]["properties"]["limit"]
    assert (limit["minimum"], limit["maximum"]) == (1, 1000)
    assert described["Keep"]["properties"]["keep"]["minimum"] == 1


@pytest.mark.parametrize("graphs", [[], {"a": 1}, {1: chat()}])
def test_what_is_no_graph_is_refused(graphs: Any, saver: ForkpointSaver) -> None:
    with pytest.raises(InvalidInput):
        create_app(saver, graphs)


def test_keys_without_an_identity_are_refused() -> None:
    for keys in ({}, {"": "a"}, {"key": ""}):
        with pytest.raises(ValueError, match="ApiKeys"):
            ApiKeys(keys)
