"""The benchmarks run, on sizes that take seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORKLOADS = {"chat", "history", "window", "agent", "delta", "growth", "throughput"}


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
