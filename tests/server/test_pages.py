"""The pages for browsers: what is in them, for whom, and one walk through them."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from playwright.async_api import expect

from browsing import browsing, check_accessibility
from calling import calling
from checking import config, encrypted_serde, id_of
from checking import put as put_checkpoint
from forkpoint import SqliteSaver, ThreadCatalog
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.server import ApiKeys, create_app
from forkpoint.server.page_views import told
from graphs import MORE_SHAPES
from served import Gates, chat, said, serving

FORM = {"content-type": "application/x-www-form-urlencoded", "origin": "http://localhost"}
SCRIPTS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'--><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}</textarea></title>",
)
NASTY = "".join(SCRIPTS)


async def get(client: httpx.AsyncClient, page: str, expected: int = 200, **parameters: str) -> str:
    """Return a page's text, and check what is true of every page."""
    answer = await client.get(f"/pages/{page}", params=parameters)
    assert answer.status_code == expected, answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    if answer.headers["content-type"].startswith("text/html"):
        check_structure(answer.text)
    return answer.text


class Elements(HTMLParser):
    """The elements of a page, as a browser makes them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def check_structure(text: str) -> None:
    """Check that a page has one heading and one main part, and nothing of others."""
    elements = Elements(text).elements
    tags = [tag for tag, _ in elements]
    assert [tags.count(tag) for tag in ("h1", "main", "title")] == [1, 1, 1]
    assert {"svg", "iframe", "object", "style", "base"}.isdisjoint(tags)
    for tag, attributes in elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        if tag in ("script", "img", "link", "a", "form"):
            names = ("src", "href", "action")
            places = [attributes[name] for name in names if name in attributes]
            assert len(places) == 1
            assert re.match(r"(/agents)?/pages/|#main$", places[0] or "")


async def post(client: httpx.AsyncClient, page: str, **fields: str) -> httpx.Response:
    return await client.post(f"/pages/{page}", data=fields, headers=FORM)


def fields_of(text: str, action: str) -> dict[str, str]:
    """Return the hidden fields of a page's form."""
    form = re.search(rf'<form method="post" action="/pages/{action}">(.*?)</form>', text, re.S)
    assert form is not None, text
    hidden = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', form[1])
    return {name: html.unescape(value) for name, value in hidden}


@pytest.fixture
async def talked(saver: ForkpointSaver) -> list[Any]:
    """The states of a thread with two turns, the second of which waits for an answer."""
    ThreadCatalog(saver).create("t", label="A talk", tags=["x", "y"], metadata={"user_id": "u1"})
    graph = chat().copy({"checkpointer": saver})
    for text in ("one", "ask"):
        await graph.ainvoke(said(text), {"configurable": {"thread_id": "t"}})
    return [state async for state in graph.aget_state_history(config("t"))]


def id_at(states: list[Any], index: int) -> str:
    return str(states[index].config["configurable"]["checkpoint_id"])


async def test_threads_are_listed_searched_and_paged(saver: ForkpointSaver) -> None:
    catalog = ThreadCatalog(saver)
    for number in range(60):
        catalog.create(f"t{number:02}", label=f"Order {number:02}", metadata={"n": number})
    catalog.create("tagged", tags=["vip"], metadata={"user": "u1", "plan": "a,b"}, label="Late")
    async with calling(create_app(saver)) as client:
        root = await client.get("/")
        assert (root.status_code, root.headers["location"]) == (303, "/pages/")
        first = await get(client, "")
        assert "61 threads" in first
        following = re.search(r'href="([^"]*)" rel="next"', first)
        assert following is not None
        second = (await client.get(html.unescape(following[1]))).text
        shown = re.findall(r"thread\?thread_id=(\w+)", first + second)
        assert sorted(shown) == sorted([f"t{number:02}" for number in range(60)] + ["tagged"])
        for query, names in (
            ({"text": "order 07"}, ["t07"]),
            ({"text": "t11"}, ["t11"]),
            ({"metadata": "n=3"}, ["t03"]),
            ({"metadata": 'user="u1"'}, ["tagged"]),
            ({"metadata": '{"plan": "a,b"}'}, ["tagged"]),
            ({"tags": "vip, "}, ["tagged"]),
            ({"status": "busy"}, []),
            ({"until": "2020-01-01"}, []),
            ({"since": "2020-01-01", "tags": "vip"}, ["tagged"]),
            ({"text": "order", "sort": "thread_id", "order": "asc", "metadata": "n=9"}, ["t09"]),
        ):
            text = await get(client, "", **query)
            assert re.findall(r"thread\?thread_id=(\w+)", text) == names, query
        for query in ({"metadata": "n"}, {"metadata": "{"}, {"since": "x"}, {"sort": "x"}):
            await get(client, "", 422, **query)


async def test_what_is_known_of_a_thread_is_told_in_words(path: Path) -> None:
    with SqliteSaver(path, preview=["messages", "turns"]) as saver:
        graph = chat().copy({"checkpointer": saver})
        await graph.ainvoke(said("one"), config("t"))
        async with calling(create_app(saver)) as client:
            text = await get(client, "")
    assert "<bdi>messages</bdi>: <bdi>assistant: Hello one</bdi>" in text
    assert "<bdi>turns</bdi>: <bdi>1</bdi>" in text
    assert told({"ask": [True, None]}) == '{"ask": [true, null]}'


@pytest.mark.parametrize(
    ("serde", "asked"),
    [(None, ": <bdi>one</bdi> and 1 more</p>"), (encrypted_serde(), " and 1 more</p>")],
)
async def test_threads_that_wait_say_for_how_many_answers(
    serde: Any, asked: str, path: Path
) -> None:
    with SqliteSaver(path, serde=serde) as saver:
        MORE_SHAPES["questions"].build(saver).invoke({"items": []}, config("t"))
    with SqliteSaver(path) as saver:  # without the key of the second
        async with calling(create_app(saver)) as client:
            text = await get(client, "")
    assert f'<p class="ask">Waits for an answer{asked}' in text


async def test_what_is_refused_leads_back_to_where_it_was_typed(saver: ForkpointSaver) -> None:
    ThreadCatalog(saver).create("t")
    async with calling(create_app(saver, {"chat": chat()})) as client:
        for before, is_led in (
            ("http://localhost/pages/thread?thread_id=t%26&x=%22", True),
            ("http://elsewhere/pages/thread?thread_id=t", False),
            ("http://localhost/threads", False),
            ("", False),
        ):
            given = {"thread_id": "t", "kind": "json", "input": "{"}
            headers = {**FORM, "referer": before}
            refused = await client.post("/pages/run", data=given, headers=headers)
            assert refused.status_code == 422
            check_structure(refused.text)
            assert (">Back</a>" in refused.text) is is_led
            back = 'href="/pages/thread?thread_id=t%26&amp;x=%22"'
            assert (back in refused.text) is is_led


async def test_a_thread_shows_its_state_and_what_it_waits_for(
    saver: ForkpointSaver, talked: list[Any]
) -> None:
    async with calling(create_app(saver, {"chat": chat()})) as client:
        text = await get(client, "thread", thread_id="t")
        assert "A talk" in text
        assert [word in text for word in ("Hello one", "sure?", "Waits for an answer")] == [
            True
        ] * 3
        assert fields_of(text, "answer")["thread_id"] == "t"
        old = await get(client, "thread", thread_id="t", checkpoint_id=id_at(talked, 2))
        assert "state at the checkpoint" in old
        assert "sure?" not in old
        head = await get(client, "thread", thread_id="t", checkpoint_id=id_at(talked, 0))
        assert "sure?" in head
        value = await get(client, "value", thread_id="t", channel="turns")
        assert value == "1"
        await get(client, "value", 404, thread_id="t", channel="nothing")
        await get(client, "thread", 404, thread_id="nobody")
        missing = "1efb9d4e-0000-6000-8000-000000000000"
        await get(client, "thread", 404, thread_id="t", checkpoint_id=missing)
        await get(client, "thread", 422)
        for page in ("nothing", "fork", "static", "a/b?c"):  # a form that was sent is no page
            assert "there is no page" in await get(client, page, 404)
    async with calling(create_app(saver)) as client:  # without a graph
        text = await get(client, "thread", thread_id="t")
        assert "sure?" in text
        assert 'action="/pages/answer"' not in text
        assert 'action="/pages/run"' not in text
        refused = await post(client, "run", thread_id="t", kind="json", input="{}")
        assert refused.status_code == 400


async def test_a_state_is_shown_whatever_is_in_it(saver: ForkpointSaver) -> None:
    deep: Any = "the innermost"
    for _ in range(30):
        deep = {"inner": [deep]}
    call = {"name": "look up", "args": {"where": "in the files"}, "id": "c"}
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    talk = [
        HumanMessage([{"type": "text", "text": "What is this?"}, image], id="1"),
        AIMessage("", tool_calls=[call], id="2"),
        ToolMessage("found", tool_call_id="c", name="look up", id="3"),
    ]
    plan = {"first": "walk", "then": "run", "days": [1, 2]}
    values = {"talk": talk, "plan": plan, "deep": deep, "many": list(range(5_000)), "no": []}
    values["no talk"] = [{"type": "ai", "content": "Hello", "tool_calls": 5}]
    long = {"long": "x" * 30_000, "broad": [{"n": n} for n in range(3_000)]}
    first = put_checkpoint(saver, {**values, **long})
    put_checkpoint(saver, {**values, "plan": {**plan, "then": "fly"}, "more": None}, parent=first)
    async with calling(create_app(saver)) as client:
        before = await get(client, "thread", thread_id="thread", checkpoint_id=id_of(first))
        for word in ("What is this?", "part 2", "calls look up", "in the files", "found"):
            assert word in before
        assert "(10,000 characters more)" in before
        assert "the innermost" in before
        assert before.count("<details") < 2_100
        both = {"a": "thread", "b": "thread"}
        compared = await get(client, "compare", **both, a_checkpoint=id_of(first))
        for word in ("fly", "run", "more", "broad"):
            assert word in compared
        await get(client, "compare", 404, **both, b_checkpoint="nothing")


async def test_history_is_a_time_line_with_branches_and_forks(
    saver: ForkpointSaver, talked: list[Any]
) -> None:
    graph = chat().copy({"checkpointer": saver})
    await graph.ainvoke(said("again"), talked[2].config)
    await saver.afork(talked[2].config, new_thread_id="a-fork")
    async with calling(create_app(saver)) as client:
        text = await get(client, "history", thread_id="t")
    assert len(re.findall(r'<li class="lane-0', text)) == 6
    assert len(re.findall(r'<li class="lane-1', text)) == 2
    assert text.count("end of a branch") == 1
    assert text.count("waits for an answer") == 1
    assert text.count("thread_id=a-fork") == 1
    assert text.count("made from") == 1
    assert len(re.findall(r'<input type="radio"[^>]* required ', text)) == 16


async def test_a_long_history_comes_in_pages(saver: ForkpointSaver) -> None:
    parent = None
    for step in range(60):
        metadata = {"step": step, "source": "loop"}
        parent = put_checkpoint(saver, {"n": step}, parent=parent, metadata=metadata)
    async with calling(create_app(saver)) as client:
        first = await get(client, "history", thread_id="thread")
        following = re.search(r'href="([^"]*)" rel="next"', first)
        assert following is not None
        second = (await client.get(html.unescape(following[1]))).text
        steps = [int(step) for step in re.findall(r">Step (\d+)</a>", first + second)]
        assert steps == list(range(59, -1, -1))
        assert 'rel="next"' not in second
        for index, newest in (("30", 30), ("0", 0), ("59", 59), ("-1", 59), ("-60", 0)):
            text = await get(client, "history", thread_id="thread", index=index)
            assert re.findall(r">Step (\d+)</a>", text)[0] == str(newest)
        await get(client, "history", 404, thread_id="thread", index="60")


async def test_forms_run_fork_answer_roll_back_and_delete(
    saver: ForkpointSaver, talked: list[Any]
) -> None:
    async with calling(create_app(saver, {"chat": chat()})) as client:
        fields = fields_of(await get(client, "thread", thread_id="t"), "answer")
        answered = await post(client, "answer", **fields, answer="yes")
        assert answered.status_code == 303
        assert "You said yes." in (await client.get(answered.headers["location"])).text
        new = {"thread_id": "t", "checkpoint_id": id_at(talked, 2), "new_thread_id": "f"}
        forked = await post(client, "fork", **new, kind="message", input="other")
        assert "Hello other" in (await client.get(forked.headers["location"])).text
        assert (await post(client, "fork", **new, kind="only")).status_code == 409
        compared = await get(client, "compare", a="t", b="f")
        assert compared.count("only here") == 4
        assert "user: other" in compared
        assert compared.index("What differs") < compared.index("Side by side")
        family = await get(client, "family", thread_id="f")
        assert "fork of" in family
        assert (await get(client, "family.svg", thread_id="f")).startswith("<svg")
        asked = await get(client, "rollback", thread_id="t", checkpoint_id=id_at(talked, 2))
        fields = fields_of(asked, "rollback")
        await post(client, "run", thread_id="t", kind="json", input='{"turns": 1}')
        assert (await post(client, "rollback", **fields)).status_code == 409
        asked = await get(client, "rollback", thread_id="t", checkpoint_id=id_at(talked, 2))
        rolled = await post(client, "rollback", **fields_of(asked, "rollback"))
        assert rolled.status_code == 303
        assert saver.at("t", -1).config["configurable"]["checkpoint_id"] == id_at(talked, 2)
        assert (await post(client, "delete", thread_id="t")).status_code == 303
        assert (await post(client, "delete", thread_id="t")).status_code == 404
        assert ThreadCatalog(saver).count() == 1


async def test_a_failed_run_says_why(saver: ForkpointSaver) -> None:
    ThreadCatalog(saver).create("t")
    async with calling(create_app(saver, {"chat": chat()})) as client:
        ran = await post(client, "run", thread_id="t", kind="message", input="fail")
        assert "ended with ValueError" in (await client.get(ran.headers["location"])).text
        bad = await post(client, "run", thread_id="t", kind="json", input="{")
        assert bad.status_code == 422
        check_structure(bad.text)


async def test_forms_of_other_sites_change_nothing(saver: ForkpointSaver) -> None:
    ThreadCatalog(saver).create("t")
    async with calling(create_app(saver)) as client:
        for origin in ("https://evil.example", "null", "http://localhost:81"):
            headers = {**FORM, "origin": origin}
            answer = await client.post("/pages/delete", data={"thread_id": "t"}, headers=headers)
            assert answer.status_code == 403
        as_json = await client.post("/pages/delete", json={"thread_id": "t"})
        assert as_json.status_code == 415
    assert ThreadCatalog(saver).count() == 1


async def test_scripts_in_what_is_shown_stay_text(saver: ForkpointSaver) -> None:
    """Every field that a page shows has scripts in it, and none comes out as an element."""
    graph = chat().copy({"checkpointer": saver})
    catalog = ThreadCatalog(saver, owner=NASTY)
    catalog.create(NASTY, label=NASTY, tags=[NASTY], metadata={NASTY: NASTY})
    at = {"configurable": {"thread_id": NASTY}}
    graph = graph.copy({"checkpointer": catalog.saver})
    first = {"messages": [{"role": "user", "content": NASTY, "name": NASTY}]}
    await graph.ainvoke(first, at)
    await graph.ainvoke(said("ask"), at)
    values = {NASTY: {NASTY: [NASTY]}, "messages": [{"role": "tool", "content": [{"x": NASTY}]}]}
    put_checkpoint(saver, values, thread_id="other", metadata={"source": NASTY, "step": NASTY})
    other = saver.get_tuple(config("other"))
    assert other is not None
    saver.put_writes(other.config, [("__error__", NASTY)], NASTY)
    forked = f"{NASTY}fork"
    await catalog.saver.afork(NASTY, new_thread_id=forked)
    app = create_app(saver, {NASTY: chat(), "chat": chat()})
    pages = [
        ("", {}),
        ("", {"text": NASTY, "metadata": '{"k": "<script>"}', "tags": NASTY, "owner": NASTY}),
        ("thread", {"thread_id": NASTY}),
        ("thread", {"thread_id": "other"}),
        ("history", {"thread_id": NASTY}),
        ("history", {"thread_id": "other"}),
        ("family", {"thread_id": NASTY}),
        ("compare", {"a": NASTY, "b": "other"}),
        ("delete", {"thread_id": NASTY}),
        ("rollback", {"thread_id": "other", "checkpoint_id": other.checkpoint["id"]}),
    ]
    async with calling(app) as client:
        texts = [await get(client, page, **parameters) for page, parameters in pages]
        texts.append(await get(client, "thread", 404, thread_id=f"{NASTY}nobody"))
        texts.append(await get(client, "value", 404, thread_id="other", channel=SCRIPTS[0]))
        picture = await get(client, "family.svg", thread_id=NASTY)
    assert {"script", "img"}.isdisjoint(tag for tag, _ in Elements(picture).elements)
    for text in texts:
        assert "&lt;script&gt;" in text or "nothing to remove" in text
        assert not re.search(r">49\b", text)  # an id may begin like that


async def check_nothing_is_there(client: httpx.AsyncClient, other: str, own: str) -> None:
    """Check that no page shows a thread of somebody else, and that no form reaches it."""
    at = {"thread_id": other, "checkpoint_id": "x"}
    for page in ("thread", "history", "family", "family.svg", "status", "delete"):
        await get(client, page, 404, thread_id=other)
    await get(client, "value", 404, thread_id=other, channel="c")
    await get(client, "rollback", 404, **at)
    await get(client, "compare", 404, a=own, b=other)
    await get(client, "compare", 404, a=other, b=own)
    for page in ("delete", "run", "answer", "fork", "rollback"):
        sent = await post(client, page, **at, kind="as-it-is", answer="a", steps="1")
        assert sent.status_code == 404
    forked = await post(client, "fork", thread_id=other, kind="only", new_thread_id="mine")
    assert forked.status_code == 404


async def test_with_keys_a_login_shows_the_owner_their_own_threads(saver: ForkpointSaver) -> None:
    for owner in ("a", "b"):
        ThreadCatalog(saver, owner=owner).create(f"of-{owner}")
    app = create_app(saver, authenticate=ApiKeys({"key-a": "a", "key ä;": "b"}))
    async with calling(app) as client:
        first = await client.get("/pages/")
        assert (first.status_code, first.headers["location"]) == (303, "/pages/login")
        await get(client, "login")
        assert (await post(client, "login", key="key-")).status_code == 401
        assert client.cookies == {}
        for key, owner in (("key-a", "a"), ("key ä;", "b")):
            entered = await post(client, "login", key=key)
            cookie = entered.headers["set-cookie"].lower()
            assert all(part in cookie for part in ("httponly", "samesite=strict", "path=/pages"))
            text = await get(client, "")
            assert re.findall(r"thread\?thread_id=([\w-]+)", text) == [f"of-{owner}"]
            for other in {"a", "b"} - {owner}:
                await check_nothing_is_there(client, f"of-{other}", f"of-{owner}")
            assert (await client.post("/threads/search", json={})).status_code == 401
        await post(client, "logout")
        assert (await client.get("/pages/")).status_code == 303
    assert ThreadCatalog(saver).count() == 2


async def test_pages_know_where_the_application_is_mounted(saver: ForkpointSaver) -> None:
    ThreadCatalog(saver).create("t")
    outer = FastAPI()
    outer.mount("/agents", create_app(saver))
    async with calling(outer) as client:
        text = (await client.get("/agents/", follow_redirects=True)).text
        assert 'href="/agents/pages/thread?thread_id=t"' in text
        assert (await client.get("/agents/pages/static/pages.css")).status_code == 200


@pytest.fixture
def browsed(tmp_path: Path, gates: Gates) -> Iterator[tuple[str, ForkpointSaver]]:
    """The address of a server of a chat, and its saver."""
    saver = SqliteSaver(str(tmp_path / "browsed.db"))
    try:
        with serving(create_app(saver, {"chat": chat(gates)})) as address:
            yield address, saver
    finally:
        saver.close()


@pytest.mark.browser
async def test_a_walk_through_the_pages_in_a_browser(
    browsed: tuple[str, ForkpointSaver], gates: Gates
) -> None:
    address, saver = browsed
    ThreadCatalog(saver).create("t", label=NASTY, tags=["x"])
    async with browsing(address) as page:

        async def go_on(text: str) -> None:
            await page.get_by_role("region", name="Go on").get_by_label("Message").fill(text)
            await page.get_by_role("button", name="Run").click()

        await page.goto("/")
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        await check_accessibility(page)
        await page.get_by_role("link", name="<script>").click()
        await go_on("one")
        await expect(page.get_by_text("Hello one")).to_be_visible()
        await go_on("ask")
        await expect(page.get_by_role("heading", name="Waits for an answer")).to_be_visible()
        await check_accessibility(page)

        await page.get_by_role("link", name="History").click()
        await check_accessibility(page)
        await page.get_by_role("link", name="Step 1", exact=True).click()
        await expect(page.get_by_text("state at the checkpoint")).to_be_visible()
        fork = page.get_by_role("region", name="Fork here")
        await fork.get_by_label("Message").fill("other")
        await fork.get_by_label("Id of the fork").fill("f")
        await fork.get_by_role("button", name="Fork").click()
        await expect(page.get_by_text("Hello other")).to_be_visible()
        await page.get_by_role("link", name="Compare with its source").click()
        await check_accessibility(page)
        await expect(page.get_by_text("only here")).to_have_count(3)
        await (
            page.get_by_role("region", name="first")
            .get_by_role("heading")
            .get_by_role("link")
            .click()
        )

        await page.get_by_label("Answer", exact=True).fill("yes")
        await page.get_by_role("button", name="Answer").click()
        await expect(page.get_by_text("You said yes.")).to_be_visible()
        await page.get_by_role("link", name="Family").click()
        await check_accessibility(page)
        await expect(page.get_by_role("row")).to_have_count(3)

        await page.get_by_role("link", name="History").click()
        await page.get_by_label("A: step 4").check()
        await page.get_by_label("B: step 1").check()
        await page.get_by_role("button", name="Compare A with B").click()
        await expect(page.get_by_text("only here")).to_have_count(2)
        await page.go_back()
        await page.get_by_role("link", name="Step 1", exact=True).click()
        await page.get_by_role("link", name="Roll back to here").click()
        await check_accessibility(page)
        await page.get_by_role("button", name="Remove 3 checkpoints").click()
        await expect(page.get_by_text("were removed")).to_be_visible()
        assert saver.at("t", -1).metadata["step"] == 1
        await expect(page.get_by_text("You said yes.")).to_have_count(0)

        await go_on("wait")
        await expect(page.get_by_text("A run is going on.")).to_be_visible()
        gates.left.release()
        await expect(page.get_by_text("Hello wait")).to_be_visible()
        await page.get_by_role("link", name="Delete this thread").click()
        await page.get_by_role("button", name="Delete").click()
        await expect(page.get_by_role("heading", name="1 thread", exact=True)).to_be_visible()
    assert [thread.thread_id for thread in ThreadCatalog(saver).search()] == ["f"]
