"""The benchmarks run, on sizes that take seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from processes import run_program
from servers import ReplicaSet

ROOT = Path(__file__).parents[2]
WORKLOADS = {"chat", "history", "window", "agent", "delta", "growth", "throughput", "overhead"}
SCALES = {"threads", "checkpoints", "family"}


@pytest.mark.slow  # `.ci/run` has it, too
@pytest.mark.parametrize("is_started", [False, True])
def test_a_quick_run_measures_every_workload_on_each_backend_and_draws_it(
    is_started: bool, tmp_path: Path, mongo_server: ReplicaSet
) -> None:
    """On a server that runs already, or on one that it starts itself."""
    program = tmp_path / "program.py"
    run = "runpy.run_module('benchmarks', run_name='__main__')"
    program.write_text(f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); {run}")
    server = [] if is_started else ["--mongodb-uri", mongo_server.uri]
    done = run_program(program, "--quick", "--out", tmp_path, *server, directory=ROOT)
    assert done.returncode == 0, done.stderr

    figures = json.loads((tmp_path / "results.json").read_text())
    pictures = {picture.name for picture in tmp_path.glob("*.png")}
    assert pictures == {
        f"chat-{what}{backend}.png" for what in ("stored", "time") for backend in ("", "-mongodb")
    }
    sqlite, mongodb = done.stdout.split("## ")[1:]
    for name, title, table in (("sqlite", "SQLite", sqlite), ("mongodb", "MongoDB", mongodb)):
        assert table.startswith(title)
        assert {result["workload"] for result in figures[name]["results"]} == WORKLOADS
        for workload in WORKLOADS:
            assert workload in table
    (line,) = (tmp_path / "history.jsonl").read_text().splitlines()
    assert any(name.startswith("sqlite: overhead: put") for name in json.loads(line)["ratios"])


@pytest.mark.slow  # `.ci/run` has it, too
@pytest.mark.parametrize("backend", ["sqlite", "mongodb"])
def test_a_small_run_at_scale_measures_every_workload_and_draws_it(
    backend: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    program = tmp_path / "program.py"
    run = "runpy.run_module('benchmarks.scale', run_name='__main__')"
    program.write_text(f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); {run}")
    sizes = ["--threads", "100", "--checkpoints", "40", "--family", "20", "--memory"]
    server = ["--backend", backend]
    if backend == "mongodb":
        server += ["--mongodb-uri", request.getfixturevalue("mongo_server").uri]
    done = run_program(program, *sizes, *server, "--out", tmp_path, directory=ROOT)
    assert done.returncode == 0, done.stderr

    points = json.loads((tmp_path / "scale.json").read_text())[backend]["points"]
    assert {workload for workload, *_ in points} == SCALES
    suffix = "" if backend == "sqlite" else f"-{backend}"
    pictures = {picture.name for picture in tmp_path.glob("*.png")}
    assert pictures == {f"scale-{workload}{suffix}.png" for workload in SCALES}
    for operation in {operation for _, operation, *_ in points}:
        assert f"| {operation} |" in done.stdout
        assert f"| {operation} |" in (tmp_path / "scale.md").read_text()
