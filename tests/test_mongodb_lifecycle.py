"""Every way to give MongoDBSaver a database, and what it says if the database does not serve."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any
from uuid import uuid4

import pymongo
import pytest
from bson.raw_bson import RawBSONDocument
from bson.son import SON
from langgraph.checkpoint.mongodb import MongoDBSaver as OfficialSaver
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.server_api import ServerApi

from commands import use_everything
from forkpoint import (
    ForkpointError,
    InvalidInput,
    MongoDBSaver,
    SaverClosed,
    StorageReadOnly,
    StorageUnauthorized,
    StorageUnavailable,
)
from forkpoint.saver import ForkpointSaver
from servers import HOST, Mongod, ReplicaSet
from stores import MongoStore
from support import Api, checkpoint, config, put, value_of

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


both_worlds = pytest.mark.parametrize("world", ["sync", "async"])


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


async def test_an_async_client_of_pymongo_is_refused_with_what_to_pass_instead(
    mongo_server: ReplicaSet,
) -> None:
    client: Any = pymongo.AsyncMongoClient(mongo_server.uri)
    with pytest.raises(InvalidInput, match=r"pymongo\.MongoClient.*from_conn_string"):
        MongoDBSaver(client)
    await client.close()


def test_what_is_no_client_is_refused(mongo_server: ReplicaSet) -> None:
    with pymongo.MongoClient[Any](mongo_server.uri) as client:
        motor: Any = AsyncIOMotorClient(mongo_server.uri, io_loop=asyncio.new_event_loop())
        wrong = [None, 1, mongo_server.uri, object(), pymongo.MongoClient]
        wrong += [client["db"], client["db"]["collection"], motor["db"]]
        for one in wrong:
            with pytest.raises(InvalidInput, match=r"client must be a pymongo\.MongoClient or a"):
                MongoDBSaver(one)
        motor.close()
        motor.io_loop.close()


@pytest.mark.parametrize(
    "bad",
    ["", None, 1, b"db", "a b", "a.b", "a/b", "a\\b", 'a"b', "a$b", "a\0b", "\ud800", "x" * 64],
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


@pytest.mark.parametrize(
    "options",
    [
        {"document_class": RawBSONDocument},
        {"document_class": SON},
        {"tz_aware": True, "uuidRepresentation": "standard"},
        {"server_api": ServerApi("1", strict=True, deprecation_errors=True)},
        {"maxPoolSize": 1},
        {"timeoutMS": 60_000},
        {"compressors": "zlib"},
    ],
    ids=", ".join,
)
async def test_a_client_may_have_been_made_for_other_purposes(
    options: dict[str, Any], store: MongoStore
) -> None:
    with pymongo.MongoClient[Any](store.uri, **options) as client:
        await use_everything(Api(MongoDBSaver(client, store.name), "async"))
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
        found = saver.get_tuple(stored)
        assert value_of(found) == {"messages": ["text " * 500] * 20}
        assert found is not None
        assert found.pending_writes == [("task", "c", "x" * 5000)]
        assert len(list(saver.list(config("kept")))) == 1
        assert store.problems(saver) == []
    store.close()


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as listening:
        listening.bind((HOST, 0))
        return int(listening.getsockname()[1])


@both_worlds
async def test_a_server_that_cannot_be_reached_is_unavailable(world: str, closed_port: int) -> None:
    with MongoDBSaver.from_conn_string(
        f"mongodb://{HOST}:{closed_port}", serverSelectionTimeoutMS=100
    ) as saver:
        raised = await errors(Api(saver, world), CALLS)
    assert raised == same(CALLS, StorageUnavailable, "check that the server runs, its address")


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

    def test_who_may_only_read_cannot_set_up(
        self, guarded_server: ReplicaSet, as_user: Callable[[list[Any]], ForkpointSaver]
    ) -> None:
        with as_user(["readAnyDatabase"]) as saver:
            saver._context.storage._db_name = f"test-{uuid4().hex}"  # type: ignore[attr-defined]
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
                    one["user"]
                    for one in client.admin.command("usersInfo", 1)["users"]
                    if role in one["roles"]
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
except ImportError as error:
    assert "pip install 'forkpoint[mongodb]'" in str(error), error
else:
    raise AssertionError("it was imported")
from forkpoint import *
assert ThreadCatalog(saver).count() == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
