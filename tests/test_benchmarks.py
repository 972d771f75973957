"""The benchmarks run, on sizes that take seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_quick_run_measures_every_workload_and_draws_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)

    json.loads((tmp_path / "results.json").read_text())
    pictures = sorted(picture.name for picture in tmp_path.glob("*.png"))
    assert pictures == ["chat-stored.png", "chat-time.png"]
    for workload in ("chat", "history", "window", "agent", "delta", "growth", "throughput"):
        assert workload in done.stdout
