"""What the tests of MongoDB rely on: servers that fail over, and that never outlive the tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pymongo
import pytest
from pymongo.errors import OperationFailure

from processes import environment
from servers import Mongod, ReplicaSet, wait_until


@pytest.mark.slow  # in every run, `test_mongodb_failover` relies on it
def test_a_replica_set_goes_on_without_the_member_that_was_killed(
    replica_set: ReplicaSet,
) -> None:
    with replica_set.client(w="majority") as client:
        client.test.kept.insert_one({"_id": 1})
        killed = replica_set.kill_primary()
        client.test.kept.insert_one({"_id": 2})  # by the new primary, once there is one
        assert replica_set.primary() is not killed
        killed.start()
        replica_set.wait_until_whole()
        assert client.test.kept.count_documents({}) == 2


def test_a_server_keeps_what_it_acknowledged_when_it_is_killed() -> None:
    with Mongod() as server, server.client(journal=True) as client:
        client.test.kept.insert_one({"_id": 1})
        server.kill()
        server.start()
        assert client.test.kept.count_documents({}) == 1


def test_a_guarded_server_knows_its_users(guarded_server: ReplicaSet) -> None:
    guarded_server.primary().add_user("reader", "secret", [{"role": "read", "db": "test"}])
    with pymongo.MongoClient(guarded_server.uri_of("reader", "secret")) as reader:
        assert list(reader.test.kept.find()) == []
        with pytest.raises(OperationFailure, match="not authorized"):
            reader.test.kept.insert_one({})
    with (
        pymongo.MongoClient(guarded_server.uri_of("reader", "wrong")) as wrong,
        pytest.raises(OperationFailure, match="Authentication failed"),
    ):
        wrong.test.kept.find_one()


if sys.platform == "linux":  # elsewhere, no process ends with its parent by itself

    def test_a_server_ends_with_the_process_that_started_it() -> None:
        script = """
import time
from servers import Mongod
with Mongod() as server:
    print(server._process.pid, server.directory, flush=True)
    time.sleep(60)
"""
        command = [sys.executable, "-c", script]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment()
        ) as parent:
            assert parent.stdout is not None
            pid, directory = parent.stdout.readline().split()
            os.kill(int(pid), 0)
            parent.send_signal(signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the server to end")
        shutil.rmtree(directory, ignore_errors=True)  # a server that starts does so, too
