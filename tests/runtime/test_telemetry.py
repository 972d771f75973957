"""Traces and metrics: what each operation did, and nothing of the content."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from forkpoint import RetentionPolicy, SqliteSaver, ThreadCatalog
from forkpoint.runtime.telemetry import COUNTS, THREAD_IDS_VARIABLE
from processes import environment, run_program
from stores import SqliteStore, Store

SECRET = "what nobody may see"

PROGRAM = f"""
import asyncio, json, sys, time
from datetime import timedelta
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
metrics.set_meter_provider(MeterProvider(metric_readers=[reader]))

SCRIPT
from checking import config, put
from forkpoint import RetentionPolicy, ThreadCatalog, ThreadNotFound

def values(number):
    return {{"text": "{SECRET} " * 2000, "n": number}}

def points():
    found = reader.get_metrics_data()
    return [
        (metric.name, dict(point.attributes), getattr(point, "value", None))
        for resource in found.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    ]

head = put(saver, values(0))
with trace.get_tracer("application").start_as_current_span("turn"):
    asyncio.run(saver.aget_tuple(config()))
    head = put(saver, {{"n": 1}}, parent=head)
list(saver.history("thread", values=False))
mine = saver
SCRIPT
with saver:
    saver.trim("thread", 1)  # the other saver remembers a thread that has changed since
saver = mine
head = put(saver, {{"n": 2}}, parent=head)
put(saver, values(3), parent=put(saver, values(3), parent=head))
try:
    saver.purge("{SECRET}" if len(sys.argv) > 1 else "nobody")
except ThreadNotFound:
    pass
def leases_held():
    return [value for name, _, value in points() if name == "forkpoint.leases.held"]

with ThreadCatalog(saver).run("thread") as lease:
    held = leases_held()
    lease.answer_tool_calls()
ThreadCatalog(saver).rollover("thread", "successor", channels=["n"])
dropped = ThreadCatalog(saver).run("dropped", ttl=timedelta(milliseconds=30))
assert dropped.ask()
del dropped
for _ in range(3000):
    if leases_held() == [0]:
        break
    time.sleep(0.01)
ThreadCatalog(saver).apply_retention(RetentionPolicy(max_checkpoints_per_thread=1))
saver.delete_thread("thread")
print(json.dumps({{
    "spans": [
        [span.name, dict(span.attributes), span.status.status_code.name, span.status.description,
         [event.name for event in span.events], span.parent and span.parent.span_id,
         span.context.span_id]
        for span in exporter.get_finished_spans()
    ],
    "held": held,
    "points": points(),
}}))
"""


def told(store: Store, directory: Path, *arguments: str) -> Any:
    """Return the spans and the points of the program."""
    program = directory / "traced.py"
    program.write_text(PROGRAM.replace("SCRIPT", store.script))
    done = run_program(program, *arguments, directory=directory)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout
    return json.loads(done.stdout)


def test_each_operation_has_a_span(store: Store, tmp_path: Path) -> None:
    spans = told(store, tmp_path)["spans"]
    named: dict[str, list[Any]] = {}
    for name, attributes, *rest in spans:
        named.setdefault(name, []).append((attributes, *rest))
    system = "sqlite" if "Sqlite" in type(store).__name__ else "mongodb"
    for name, ours in named.items():
        if name != "turn":
            assert {one[0]["db.system.name"] for one in ours} == {system}, name

    first, second, third, _, fifth = (one[0] for one in named["forkpoint put_checkpoint"])
    assert first["forkpoint.thread.id"] == "thread"
    assert first["db.operation.name"] == "put_checkpoint"
    assert first["forkpoint.bytes.written"] > 2000 * len(SECRET)
    assert first["forkpoint.chunks.written"] >= 1
    assert second["forkpoint.bytes.written"] < 1000
    assert "forkpoint.retries" not in second
    assert third["forkpoint.retries"] == fifth["forkpoint.chunks.shared"] == 1
    assert "forkpoint.chunks.written" not in fifth
    assert second["forkpoint.rows.written"] == first["forkpoint.rows.written"] == 2
    (read,) = named["forkpoint get_tuple"]
    assert read[0]["forkpoint.bytes.read"] > 2000 * len(SECRET)
    (listed,) = named["forkpoint page"]
    assert listed[0]["forkpoint.rows.read"] >= 2
    assert listed[0]["forkpoint.bytes.read"] < 2000

    for operation in ("get_tuple", "page", "trim", "acquire", "rollover", "answer_tool_calls"):
        about = {one[0]["forkpoint.thread.id"] for one in named[f"forkpoint {operation}"]}
        assert "thread" in about, operation

    turn = named["turn"][0][-1]
    assert [one[-2] for one in named["forkpoint put_checkpoint"]] == [
        *(None, turn, None, None, None)
    ]
    assert read[-2] == turn
    (failed,) = named["forkpoint purge"]
    assert failed[0]["error.type"] == "ThreadNotFound"
    assert failed[1:4] == ("ERROR", None, [])
    assert read[1] == "UNSET"
    assert {"forkpoint acquire", "forkpoint release", "forkpoint apply_retention"} <= named.keys()


def test_operations_are_measured(store: Store, tmp_path: Path) -> None:
    found = told(store, tmp_path)
    assert found["held"] == [1]
    points = {
        (name, attributes.get("db.operation.name"), attributes.get("error.type")): value
        for name, attributes, value in found["points"]
    }
    assert points["forkpoint.leases.held", None, None] == 0
    assert points["forkpoint.threads.swept", "apply_retention", None] == 1
    assert points["forkpoint.bytes.written", "put_checkpoint", None] > 2000 * len(SECRET)
    assert points["forkpoint.rows.written", "put_checkpoint", None] == 10
    assert points["forkpoint.retries", "put_checkpoint", None] == 1
    assert ("db.client.operation.duration", "purge", "ThreadNotFound") in points
    assert all("forkpoint.thread.id" not in attributes for _, attributes, _ in found["points"])


def test_what_is_counted_is_described() -> None:
    page = (Path(__file__).parents[2] / "docs" / "traces.md").read_text()
    for name in (*COUNTS.values(), "forkpoint.threads.swept", "forkpoint.leases.held"):
        assert f"`{name}`" in page


def test_the_ids_of_threads_can_be_left_out(tmp_path: Path, path: Path) -> None:
    script = f"import os\nos.environ[{THREAD_IDS_VARIABLE!r}] = 'false'\n"
    store = SqliteStore(path)
    program = tmp_path / "traced.py"
    program.write_text(PROGRAM.replace("SCRIPT", script + store.script))
    done = run_program(program, "secret", directory=tmp_path)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout
    assert "forkpoint.thread.id" not in done.stdout
    assert json.loads(done.stdout)["spans"]


def test_what_is_not_traced_is_measured(tmp_path: Path, path: Path) -> None:
    store = SqliteStore(path)
    program = PROGRAM.replace("SCRIPT", store.script).replace(
        "TracerProvider()", "TracerProvider(sampler=ALWAYS_OFF)"
    )
    script = "from opentelemetry.sdk.trace.sampling import ALWAYS_OFF\n" + program.replace(
        "saver = mine\n", "saver = mine\nsaver.put_writes(head, [('c', 1), ('d', 2)], 'task')\n"
    )
    (tmp_path / "measured.py").write_text(script)
    done = run_program(tmp_path / "measured.py", directory=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["spans"] == []
    written = [
        (attributes["db.operation.name"], value)
        for name, attributes, value in found["points"]
        if name == "forkpoint.rows.written"
    ]
    assert ("put_writes", 3) in written  # with their receipt


WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
from forkpoint import SqliteSaver, ThreadCatalog
from forkpoint.runtime.runner import WorkerRunner
with SqliteSaver(":memory:") as saver:
    assert type(saver._runner) is WorkerRunner
    saver.setup()
    assert saver.get_tuple({"configurable": {"thread_id": "nobody"}}) is None
    with ThreadCatalog(saver).run("thread") as lease:
        assert lease.config["configurable"]["thread_id"] == "thread"
"""


def test_without_opentelemetry_nothing_stands_in_between() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT], env=environment(), check=True)


def test_what_a_sweep_in_the_background_does_is_logged(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "forkpoint.sweeper")
    with SqliteSaver(path) as saver:
        catalog = ThreadCatalog(saver)
        catalog.apply_retention(RetentionPolicy(expired=True))
        sweeper = catalog.sweeper(timedelta(hours=1))
        while sweeper.last_result is None:
            sweeper._stopped.wait(0.01)
        sweeper.stop()
    assert "a sweep deleted 0 threads and trimmed 0" in caplog.messages
