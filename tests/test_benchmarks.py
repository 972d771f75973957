"""The benchmarks run, on sizes that take seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from processes import run_program
from servers import ReplicaSet

ROOT = Path(__file__).parent.parent
WORKLOADS = {"chat", "history", "window", "agent", "delta", "growth", "throughput"}


@pytest.mark.parametrize(("backend", "workloads"), [("sqlite", WORKLOADS), ("mongodb", {"chat"})])
def test_a_backend_is_measured_and_drawn(
    backend: str, workloads: set[str], tmp_path: Path, mongo_server: ReplicaSet
) -> None:
    program = tmp_path / "program.py"
    run = "runpy.run_module('benchmarks', run_name='__main__')"
    program.write_text(f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); {run}")
    arguments: list[str | Path] = ["--quick", "--out", tmp_path, "--backend", backend]
    arguments += ["--mongodb-uri", mongo_server.uri, "--only", *sorted(workloads)]
    done = run_program(program, *arguments, directory=ROOT)

    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "results.json").read_text())
    assert {result["workload"] for result in figures[backend]["results"]} == workloads
    assert all(workload in done.stdout for workload in workloads)
    suffix = "" if backend == "sqlite" else f"-{backend}"
    pictures = {picture.name for picture in tmp_path.glob("*.png")}
    assert pictures == {f"chat-stored{suffix}.png", f"chat-time{suffix}.png"}


@pytest.mark.slow
def test_a_quick_run_measures_every_workload_on_each_backend_and_draws_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)

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
