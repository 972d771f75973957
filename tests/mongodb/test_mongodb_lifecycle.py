"""Every way to give MongoDBSaver a database, and what it says if the database does not serve."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pymongo
import pytest
from bson.raw_bson import RawBSONDocument
from bson.son import SON
from langgraph.checkpoint.mongodb import MongoDBSaver as OfficialSaver
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.monitoring import CommandStartedEvent
from pymongo.server_api import ServerApi

from checking import Api, checkpoint, config, put, value_of
from commands import Started, use_everything, use_the_catalog
from forkpoint import (
    ForkpointError,
    InvalidInput,
    MissingFeature,
    MongoDBSaver,
    SaverClosed,
    StorageReadOnly,
    StorageUnauthorized,
    StorageUnavailable,
    ThreadCatalog,
    ThreadFilter,
)
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from servers import HOST, PATIENCE_SECONDS, Mongod, ReplicaSet, bound_socket
from stores import MongoStore

Call = Callable[[Api], Awaitable[Any]]

READS: dict[str, Call] = {
    "setup": lambda api: api.setup(),
    "get_tuple": lambda api: api.get_tuple(config()),
    "list": lambda api: api.list(config()),
    "list of all threads": lambda api: api.list(None, filter={"n": 1}),
    "get_delta_channel_history": lambda api: api.get_delta_channel_history(
        config=config(), channels=["c"]
    ),
}
WRITES: dict[str, Call] = {
    "put": lambda api: api.put(config("new"), checkpoint({"text": "x" * 5000}), {}, {"text": 1}),
    "put again": lambda api: api.put(config(), checkpoint({"n": 1}), {}, {"n": 1}),
    "put_writes": lambda api: api.put_writes(config(checkpoint_id="c"), [("c", 1)], "task"),
    "delete_thread": lambda api: api.delete_thread("thread"),
    "delete_for_runs": lambda api: api.delete_for_runs(["run"]),
    "copy_thread": lambda api: api.copy_thread("thread", "copy"),
    "prune": lambda api: api.prune(["thread"]),
    "prune with delete": lambda api: api.prune(["thread"], strategy="delete"),
}
CALLS = READS | WRITES


async def errors(api: Api, calls: Mapping[str, Call]) -> dict[str, tuple[type, str]]:
    """Return what each of these calls raises: the type and the message."""
    raised = {}
    for name, call in calls.items():
        with pytest.raises(ForkpointError) as error:
            await call(api)
        raised[name] = type(error.value), str(error.value)
    return raised


def same(calls: Iterable[str], kind: type[ForkpointError], part: str) -> dict[str, Any]:
    """Return what `errors` does if each call raises this, with this as part of the message."""
    return dict.fromkeys(calls, (kind, Containing(part)))


class Containing(str):
    """A part of a text: it equals each text that it is in."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and str(self) in other

    __hash__ = str.__hash__


@pytest.fixture
def store(mongo_store: MongoStore) -> MongoStore:
    return mongo_store


@pytest.fixture
def world(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def both_worlds(test: Any) -> Any:
    """Run a test in both worlds, in every run in one of them, by turns."""
    return pytest.mark.in_turns(pytest.mark.parametrize("world", ["sync", "async"])(test))


# Clients


@both_worlds
async def test_a_client_of_pymongo_serves_both_worlds_and_stays_open(
    world: str, store: MongoStore
) -> None:
    with pymongo.MongoClient[Any](store.uri) as client:
        saver = MongoDBSaver(client, store.name)
        await use_everything(Api(saver, world))
        saver.close()
        with pytest.raises(SaverClosed):
            saver.get_tuple(config())
        assert client[store.name]["forkpoint_store"].find_one() is not None
        async with MongoDBSaver(client, store.name) as saver:
            assert await saver.aget_tuple(config()) is not None
        assert client[store.name]["forkpoint_store"].find_one() is not None


@both_worlds
async def test_a_client_of_motor_serves_both_worlds_and_stays_open(
    world: str, store: MongoStore
) -> None:
    client: Any = AsyncIOMotorClient(store.uri)
    collection = client[store.name]["forkpoint_store"]
    saver = MongoDBSaver(client, store.name)
    await use_everything(Api(saver, world))
    saver.close()
    assert await collection.find_one() is not None
    async with MongoDBSaver(client, store.name) as saver:
        assert await saver.aget_tuple(config()) is not None
    assert await collection.find_one() is not None
    client.close()


async def test_calls_of_both_worlds_share_the_pool_of_a_motor_client(store: MongoStore) -> None:
    client: Any = AsyncIOMotorClient(store.uri, maxPoolSize=1)
    saver = MongoDBSaver(client, store.name)
    await asyncio.gather(*(saver.aput(config(), checkpoint({}), {}, {}) for _ in range(20)))
    put(saver, {"n": 1})
    status = await client.admin.command("serverStatus")
    before = status["connections"]["totalCreated"]
    await asyncio.gather(*(saver.aget_tuple(config()) for _ in range(20)))
    assert len(list(saver.list(config()))) == 21
    status = await client.admin.command("serverStatus")
    assert status["connections"]["totalCreated"] == before
    client.close()


@both_worlds
async def test_an_async_client_of_pymongo_serves_both_worlds_and_stays_open(
    world: str, store: MongoStore
) -> None:
    client: Any = pymongo.AsyncMongoClient(store.uri, document_class=SON, tz_aware=True)
    saver = MongoDBSaver(client, store.name)
    await use_everything(Api(saver, world))
    assert await client[store.name]["forkpoint_store"].find_one() is not None
    saver.close()
    with pytest.raises(SaverClosed):
        saver.get_tuple(config())
    assert await client[store.name]["forkpoint_store"].find_one() is not None
    async with MongoDBSaver(client, store.name) as saver:
        assert await saver.aget_tuple(config()) is not None
    await client.close()


def test_an_async_client_serves_a_graph_that_runs_in_another_loop(store: MongoStore) -> None:
    client: Any = pymongo.AsyncMongoClient(store.uri)
    with MongoDBSaver(client, store.name) as saver:
        for n in range(3):  # each in a loop of its own
            asyncio.run(saver.aput(config(f"{n}"), checkpoint({"n": n}), {}, {"n": 1}))
        assert {value_of(item)["n"] for item in saver.list(None)} == {0, 1, 2}


# Names


@pytest.mark.parametrize("kind", ["string", "client", "motor", "async"])
async def test_the_database_of_the_connection_string_is_used(
    kind: str, store: MongoStore, mongo_server: ReplicaSet
) -> None:
    def named(database: str) -> str:
        return mongo_server.uri.replace("/?", f"/{database}?", 1)

    makers: dict[str, Callable[[str], Any]] = {
        "client": pymongo.MongoClient,
        "motor": AsyncIOMotorClient,
        "async": pymongo.AsyncMongoClient,
    }
    clients: list[Any] = []

    def saver_of(uri: str, *args: Any) -> MongoDBSaver:
        if kind == "string":
            return MongoDBSaver.from_conn_string(uri, *args)
        clients.append(makers[kind](uri))
        return MongoDBSaver(clients[-1], *args)

    def database_of(saver: MongoDBSaver) -> str:
        with saver:
            saver.setup()
            return str(parts_of(saver).context.storage._commands.database)  # type: ignore[attr-defined]

    assert database_of(saver_of(named(store.name))) == store.name
    assert database_of(saver_of(named("another"), store.name)) == store.name
    assert store.collection.find_one({"_id": "settings"}) is not None
    for of_the_server in ("admin", "local", "config", ""):
        assert database_of(saver_of(named(of_the_server))) == "forkpoint"
    for client in clients:
        closing = client.close()
        if closing is not None:
            await closing


def test_two_collections_of_one_database_are_two_stores(store: MongoStore) -> None:
    with (
        MongoDBSaver.from_conn_string(store.uri, store.name, collection="one") as first,
        pymongo.MongoClient[Any](store.uri) as client,
    ):
        two = MongoDBSaver(client, store.name, collection="two")
        put(first, {"n": 1})
        put(two, {"n": 2})
        first.copy_thread("thread", "copy")
        assert [value_of(item)["n"] for item in first.list(None)] == [1, 1]
        assert value_of(two.get_tuple(config())) == {"n": 2}
        assert set(client[store.name].list_collection_names()) == {"one", "two"}


@pytest.mark.parametrize(
    "bad", ["", None, 1, "a$b", "system.x", ".a", "a.", "a..b", "a\0b", "\ud800", "x" * 181]
)
def test_what_cannot_be_the_name_of_a_collection_is_refused(bad: Any, store: MongoStore) -> None:
    with pytest.raises(InvalidInput, match="collection"):
        MongoDBSaver.from_conn_string(store.uri, store.name, collection=bad)


def test_what_is_no_client_is_refused(mongo_server: ReplicaSet) -> None:
    with pymongo.MongoClient[Any](mongo_server.uri) as client:
        motor: Any = AsyncIOMotorClient(mongo_server.uri, io_loop=asyncio.new_event_loop())
        wrong = [None, 1, mongo_server.uri, object(), pymongo.MongoClient]
        wrong += [client["db"], client["db"]["collection"], motor["db"]]
        for value in wrong:
            with pytest.raises(InvalidInput, match=r"client must be a pymongo\.MongoClient, a"):
                MongoDBSaver(value)
        with pytest.raises(InvalidInput, match="from_conn_string takes a connection string"):
            MongoDBSaver(mongo_server.uri)
        motor.close()
        motor.io_loop.close()


@pytest.mark.parametrize(
    "bad",
    ["", 1, b"db", "a b", "a.b", "a/b", "a\\b", 'a"b', "a$b", "a\0b", "\ud800", "x" * 64, "admin"],
)
def test_what_cannot_be_the_name_of_a_database_is_refused(bad: Any, store: MongoStore) -> None:
    with pymongo.MongoClient[Any](store.uri) as client:
        with pytest.raises(InvalidInput, match=r"db_name|database"):
            MongoDBSaver(client, bad)
        with pytest.raises(InvalidInput, match=r"db_name|database"):
            MongoDBSaver.from_conn_string(store.uri, bad)


def test_the_longest_name_of_a_database_works(mongo_server: ReplicaSet) -> None:
    store = MongoStore(mongo_server.uri, "ü" * 10 + uuid4().hex + "-" * 11)
    assert len(store.name.encode()) == 63
    with store.saver() as saver:
        put(saver, {"n": 1})
        assert len(list(saver.list(None))) == 1
    store.close()


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "http://127.0.0.1/",
        "mongodb://",
        "mongodb://host:port",
        "mongodb://user:p@ss@host",
        b"mongodb://host",
        None,
        1,
    ],
)
def test_what_is_no_connection_string_is_refused_at_once(bad: Any) -> None:
    with pytest.raises(InvalidInput):
        MongoDBSaver.from_conn_string(bad)


@pytest.mark.parametrize(
    "options", [{"nonsense": 1}, {"serverSelectionTimeoutMS": "soon"}, {"document_class": 1}]
)
def test_options_that_make_no_client_are_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        MongoDBSaver.from_conn_string(f"mongodb://{HOST}", **options)


def test_an_option_that_is_mistyped_is_told_what_may_be_meant() -> None:
    with pytest.raises(InvalidInput, match=r"serverSelectionTimoutMS.*serverselectiontimeoutms"):
        MongoDBSaver.from_conn_string(f"mongodb://{HOST}", serverSelectionTimoutMS=1)


@pytest.mark.parametrize(
    "options",
    [
        {
            "document_class": RawBSONDocument,
            "tz_aware": True,
            "maxPoolSize": 1,
            "uuidRepresentation": "standard",
            "compressors": "zlib",
            "timeoutMS": 600_000,
        },
        {
            "document_class": SON,
            "server_api": ServerApi("1", strict=True, deprecation_errors=True),
        },
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                {"document_class": RawBSONDocument},
                {"document_class": SON},
                {"tz_aware": True, "uuidRepresentation": "standard"},
                {"server_api": ServerApi("1", strict=True, deprecation_errors=True)},
                {"maxPoolSize": 1},
                {"timeoutMS": 600_000},
                {"compressors": "zlib"},
            )
        ),
    ],
    ids=", ".join,
)
async def test_a_client_may_have_been_made_for_other_purposes(
    options: dict[str, Any], store: MongoStore
) -> None:
    with pymongo.MongoClient[Any](store.uri, **options) as client:
        saver = MongoDBSaver(client, store.name)
        await use_everything(Api(saver, "async"))
        await use_the_catalog(Api(ThreadCatalog(saver), "sync"))
    with store.saver() as saver:
        assert store.problems(saver) == []


@both_worlds
async def test_a_client_that_its_owner_closed_is_a_closed_saver(
    world: str, store: MongoStore
) -> None:
    client = pymongo.MongoClient[Any](store.uri)
    used, unused = MongoDBSaver(client, store.name), MongoDBSaver(client, store.name)
    put(used, {"n": 1}, metadata={"run_id": "run"})
    client.close()
    calls = {name: call for name, call in CALLS.items() if name != "setup"}
    assert await errors(Api(used, world), calls) == same(calls, SaverClosed, "closed")
    assert await errors(Api(unused, world), CALLS) == same(CALLS, SaverClosed, "closed")


# Setting up


def test_setting_up_again_makes_what_is_missing(store: MongoStore) -> None:
    def indexes() -> dict[str, Any]:
        return dict(store.collection.index_information())

    with store.saver() as saver:
        stored = put(saver, {"text": "text " * 500})
    made = indexes()
    assert len(made) > 2
    with store.saver() as saver:
        saver.setup()
        saver.setup()
    assert indexes() == made

    store.collection.drop_index("forkpoint_place")
    store.collection.delete_one({"_id": "settings"})
    with store.saver() as saver:
        saver.setup()
        assert indexes() == made
        assert value_of(saver.get_tuple(stored)) == {"text": "text " * 500}


def test_two_that_store_something_for_the_first_time_use_one_secret(store: MongoStore) -> None:
    """Whatever one of them knows when the other one does all that it does."""
    for number in itertools.count():
        commands: list[str] = []
        store.collection.delete_many({})
        with store.saver() as other:

            def before(sent: CommandStartedEvent) -> None:
                if len(commands) == number:  # noqa: B023
                    put(other, {"n": 1}, thread_id="other")
                commands.append(sent.command_name)  # noqa: B023

            with store.saver(event_listeners=[Started(before)]) as saver:
                put(saver, {"n": 2})
                if len(commands) <= number:
                    break
                assert {value_of(item)["n"] for item in saver.list(None)} == {1, 2}
        assert len(store.secrets()) == 1
    assert number > 3


@pytest.mark.parametrize(
    ("command", "code", "feature"),
    [
        ("update", 9, "updates by an aggregation pipeline"),
        ("update", 115, "updates by an aggregation pipeline"),
        ("aggregate", 40324, r"\$lookup by a field and a pipeline"),
    ],
)
@both_worlds
async def test_a_server_that_lacks_something_is_told_so_at_the_set_up(
    world: str, command: str, code: int, feature: str, store: MongoStore
) -> None:
    fault = {"failCommands": [command], "errorCode": code, "appName": store.name}
    arm = {"configureFailPoint": "failCommand", "mode": "alwaysOn", "data": fault}
    with pymongo.MongoClient[Any](store.uri) as client:
        client.admin.command(arm)
        try:
            with store.saver(appname=store.name) as saver:
                with pytest.raises(MissingFeature, match=feature):
                    await Api(saver, world).setup()
                with pytest.raises(MissingFeature, match=feature):
                    await Api(saver, world).get_tuple(config())
        finally:
            client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})
        assert store.collection.find_one() is None
    with store.saver() as saver:
        put(saver, {"n": 1})


async def test_a_database_may_hold_what_is_of_others(store: MongoStore) -> None:
    with pymongo.MongoClient[Any](store.uri) as client:
        database = client[store.name]
        database["users"].insert_one({"_id": "thread", "family": "name:thread", "kind": "thread"})
        official = OfficialSaver(client, db_name=store.name)
        theirs: Any = official.put(config(), checkpoint({"n": "theirs"}), {"source": "loop"}, {})
        official.put_writes(theirs, [("c", 1)], "task")

        def content(names: set[str]) -> list[list[Any]]:
            return [list(database[name].find()) for name in sorted(names)]

        names = set(database.list_collection_names())
        before = content(names)
        saver = MongoDBSaver(client, store.name)
        await use_everything(Api(saver, "sync"))
        saver.delete_thread("thread")
        saver.delete_thread("copy")

        assert set(database.list_collection_names()) == {*names, "forkpoint_store"}
        assert content(names) == before
        assert value_of(official.get_tuple(theirs)) == {"n": "theirs"}
        assert store.problems(saver) == []


# Servers


@both_worlds
async def test_a_server_without_a_replica_set_will_do(
    world: str, standalone_server: Mongod
) -> None:
    store = MongoStore(standalone_server.uri, f"test-{uuid4().hex}")
    with store.saver() as saver:
        await use_everything(Api(saver, world))
        stored = put(saver, {"messages": ["text " * 500] * 20}, thread_id="kept")
        saver.put_writes(stored, [("c", "x" * 5000)], "task")
        item = saver.get_tuple(stored)
        assert value_of(item) == {"messages": ["text " * 500] * 20}
        assert item is not None
        assert item.pending_writes == [("task", "c", "x" * 5000)]
        assert len(list(saver.list(config("kept")))) == 1
        assert store.problems(saver) == []
    store.close()


@pytest.fixture
def closed_port() -> Iterator[int]:
    with bound_socket() as reserved:  # where nobody listens
        yield int(reserved.getsockname()[1])


@both_worlds
async def test_a_server_that_cannot_be_reached_is_unavailable(world: str, closed_port: int) -> None:
    """Calls at once wait for it together: for the attempt under way, and for one more."""

    def fail(call: Call) -> ForkpointError:
        with pytest.raises(ForkpointError) as error:
            asyncio.run(call(Api(saver, world)))  # type: ignore[arg-type]
        return error.value

    with (
        MongoDBSaver.from_conn_string(
            f"mongodb://{HOST}:{closed_port}", serverSelectionTimeoutMS=20
        ) as saver,
        ThreadPoolExecutor(len(CALLS)) as threads,
    ):
        failures = dict(zip(CALLS, threads.map(fail, CALLS.values()), strict=True))
    raised = {name: (type(error), str(error)) for name, error in failures.items()}
    assert raised == same(CALLS, StorageUnavailable, "check that the server runs, its address")
    attempts = {id(first_cause(error)) for error in failures.values()}
    assert len(attempts) < len(CALLS)


def first_cause(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else first_cause(error.__cause__)


class TestUsers:
    """Who may do what is up to the server; what it refuses has an error of its own."""

    @pytest.fixture
    def store(self, guarded_server: ReplicaSet) -> Iterator[MongoStore]:
        store = MongoStore(guarded_server.uri, f"test-{uuid4().hex}")
        with store.saver() as saver:
            stored = put(saver, {"text": "text " * 500}, metadata={"run_id": "run"})
            saver.put_writes(stored, [("c", "x" * 5000)], "task")
            put(saver, {"text": "text " * 900}, parent=stored, metadata={"run_id": "other"})
        yield store
        store.close()

    @pytest.fixture
    def as_user(
        self, guarded_server: ReplicaSet, store: MongoStore
    ) -> Callable[[list[Any]], ForkpointSaver]:
        """Makes savers of new users who have these roles."""

        def as_user(roles: list[Any]) -> ForkpointSaver:
            name = f"user-{uuid4().hex}"
            guarded_server.primary().add_user(name, "secret", roles)
            return MongoStore(guarded_server.uri_of(name, "secret"), store.name).saver()

        return as_user

    @both_worlds
    async def test_who_may_read_and_write_needs_no_other_right(
        self, world: str, store: MongoStore, as_user: Callable[[list[Any]], ForkpointSaver]
    ) -> None:
        with as_user([{"role": "readWrite", "db": store.name}]) as saver:
            await use_everything(Api(saver, world))
            assert store.problems(saver) == []

    @both_worlds
    async def test_who_may_only_read_reads_and_changes_nothing(
        self, world: str, store: MongoStore, as_user: Callable[[list[Any]], ForkpointSaver]
    ) -> None:
        before = store.content()
        with as_user([{"role": "read", "db": store.name}]) as saver:
            api = Api(saver, world)
            for read in READS.values():
                await read(api)
            assert value_of(await api.get_tuple(config())) == {"text": "text " * 900}
            assert await errors(api, WRITES) == same(WRITES, StorageReadOnly, "readWrite")
        assert store.content() == before

    @both_worlds
    async def test_who_may_only_read_searches_the_catalog_as_it_is(
        self, world: str, store: MongoStore, as_user: Callable[[list[Any]], ForkpointSaver]
    ) -> None:
        with store.saver() as saver:
            owner = ThreadCatalog(saver)
            owner.update("thread", tags={"listed"})
            owner.create("made", tags={"made"}, label="L")
            for n in range(5):
                put(saver, {"n": n}, thread_id=f"{n}")
            assert owner.count() == 7  # the index knows them all
            put(saver, {"n": 9}, thread_id="new")
            stored = put(saver, {"n": 9}, thread_id="3")
            saver.put_writes(stored, [("__interrupt__", "?")], "task")
            with (
                owner.run("4"),
                as_user([{"role": "read", "db": store.name}]) as reader,
            ):
                before = store.content()
                api = Api(ThreadCatalog(reader), world)
                read: dict[str, Any] = {}
                for name, filter, sort_by in (
                    ("all", None, "updated_at"),
                    ("by id", None, "thread_id"),
                    ("tag", ThreadFilter(tags={"made"}), "created_at"),
                    ("idle", ThreadFilter(status="idle"), "thread_id"),
                    ("asked", ThreadFilter(status="interrupted"), "status"),
                    ("busy", ThreadFilter(status="busy"), "updated_at"),
                ):
                    ids: list[str] = []
                    cursor = None
                    while True:
                        page = await api.search(filter, sort_by=sort_by, limit=3, cursor=cursor)
                        ids += [thread.thread_id for thread in page]
                        cursor = page.next_cursor
                        if cursor is None:
                            break
                    read[name] = ids
                    assert await api.count(filter) == len(ids)
                assert (await api.get("3")).status == "interrupted"
                assert store.content() == before
                assert (
                    read["by id"]
                    == sorted(["0", "1", "2", "3", "4", "made", "new", "thread"])[::-1]
                )
                assert sorted(read["all"]) == read["by id"][::-1]
                assert read["tag"] == ["made"]
                assert read["idle"] == ["thread", "new", "made", "2", "1", "0"]
                assert (read["asked"], read["busy"]) == (["3"], ["4"])
                by_owner = [thread.thread_id for thread in owner.search(sort_by="updated_at")]
                assert read["all"] == by_owner

    @both_worlds
    async def test_who_has_no_right_to_indexes_runs_everything_after_an_administrator_set_up(
        self,
        world: str,
        guarded_server: ReplicaSet,
        store: MongoStore,
        as_user: Callable[[list[Any]], ForkpointSaver],
    ) -> None:
        role = f"documents-{uuid4().hex}"
        resource = {"db": store.name, "collection": "forkpoint_store"}
        actions = ["find", "insert", "update", "remove"]
        with guarded_server.client() as client:
            client.admin.command(
                "createRole",
                role,
                privileges=[{"resource": resource, "actions": actions}],
                roles=[],
            )
        with as_user([role]) as saver:
            saver.setup()
            await use_everything(Api(saver, world))
            await use_the_catalog(Api(ThreadCatalog(saver), world))
            assert parts_of(saver).context.storage._commands.keeps_logs  # type: ignore[attr-defined]
            assert store.problems(store.saver()) == []

    @both_worlds
    async def test_who_may_only_read_does_not_see_what_has_expired(
        self, world: str, store: MongoStore, as_user: Callable[[list[Any]], ForkpointSaver]
    ) -> None:
        day = 24 * 3600 * 1_000_000
        with store.saver(ttl=timedelta(days=1)) as saver:
            for name in ("listed", "changed", "active", "renewed"):
                put(saver, {"n": 1}, thread_id=name)
            for name in ("listed", "renewed"):
                store.age(name, updated_at=2 * day)
            assert ThreadCatalog(saver).count() == 3  # the index knows them all, and "thread"
            store.age("changed", updated_at=2 * day)
            put(saver, {"n": 2}, thread_id="renewed")
        with as_user([{"role": "read", "db": store.name}]) as reader:
            api = Api(ThreadCatalog(reader), world)
            assert [await api.get(name) for name in ("listed", "changed")] == [None, None]
            living = {"thread", "active", "renewed"}
            assert {thread.thread_id for thread in await api.search()} == living
            assert await api.count() == 3

    def test_who_may_only_read_cannot_set_up(
        self, guarded_server: ReplicaSet, as_user: Callable[[list[Any]], ForkpointSaver]
    ) -> None:
        with as_user(["readAnyDatabase"]) as saver:
            parts_of(saver).context.storage._db_name = f"test-{uuid4().hex}"  # type: ignore[attr-defined]
            with pytest.raises(StorageReadOnly, match="readWrite"):
                saver.setup()

    @both_worlds
    async def test_who_may_not_read_is_told_what_is_missing(
        self, world: str, as_user: Callable[[list[Any]], ForkpointSaver]
    ) -> None:
        with as_user([{"role": "readWrite", "db": "another"}]) as saver:
            raised = await errors(Api(saver, world), CALLS)
        assert raised == same(CALLS, StorageUnauthorized, "readWrite")

    @both_worlds
    async def test_what_is_asked_for_does_not_decide_what_is_missing(
        self,
        world: str,
        guarded_server: ReplicaSet,
        store: MongoStore,
        as_user: Callable[[list[Any]], ForkpointSaver],
    ) -> None:
        """The server's message has the whole command in it, and with it the caller's words."""
        role = {"role": "read", "db": store.name}
        with as_user([role]) as saver:
            saver.setup()
            with guarded_server.client() as client:
                (user,) = [
                    user["user"]
                    for user in client.admin.command("usersInfo", 1)["users"]
                    if role in user["roles"]
                ]
                client.admin.command("revokeRolesFromUser", user, roles=[role])
            with pytest.raises(StorageUnauthorized):
                await Api(saver, world).get_tuple(config("to insert or delete { update: it"))

    @both_worlds
    async def test_a_wrong_password_is_refused(
        self, world: str, guarded_server: ReplicaSet, store: MongoStore
    ) -> None:
        uri = guarded_server.uri_of("root", "wrong")
        raised: dict[str, Any] = {}
        for name, call in CALLS.items():  # one client would wait between its attempts
            with MongoStore(uri, store.name).saver() as saver:
                raised |= await errors(Api(saver, world), {name: call})
        assert raised == same(CALLS, StorageUnauthorized, "check user, password and authSource")

    def test_credentials_are_asked_for_where_there_are_none(
        self, guarded_server: ReplicaSet, store: MongoStore
    ) -> None:
        uri = guarded_server.uri.replace("root:root@", "")
        with (
            MongoStore(uri, store.name).saver() as saver,
            pytest.raises(StorageUnauthorized, match="requires authentication"),
        ):
            saver.get_tuple(config())


# Without the driver

WITHOUT_THE_DRIVER = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pymongo", "bson", "motor"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Nothing())
"""


def test_without_pymongo_everything_else_works_and_the_saver_says_what_to_install() -> None:
    script = f"""{WITHOUT_THE_DRIVER}
import forkpoint
from forkpoint import SqliteSaver
saver = SqliteSaver(":memory:")
config = {{"configurable": {{"thread_id": "t"}}}}
assert saver.get_tuple(config) is None
try:
    from forkpoint import MongoDBSaver
except forkpoint.MissingLibrary as error:  # an ImportError, too
    assert "pip install 'forkpoint[mongodb]'" in str(error), error
else:
    raise AssertionError("it was imported")
from forkpoint import *
assert ThreadCatalog(saver).count() == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=PATIENCE_SECONDS)
