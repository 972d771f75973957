"""The README's code runs, and its commands are those that CI runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


SERVER = "mongodb://localhost:27017/?replicaSet=rs0"


def test_every_code_block_runs_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mongo_server: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    code = blocks("python")
    assert len(code) >= 5
    assert sum(SERVER in block for block in code) == 1
    for number, block in enumerate(code):
        block = block.replace(SERVER, mongo_server.uri)
        code_of = compile(block, f"README.md, block {number}", "exec", dont_inherit=True)
        exec(code_of, namespace)


def test_the_commands_name_what_is_there() -> None:
    run, check = blocks("sh")
    assert run.split(" && ")[1].split() == ["python", "examples/quickstart.py"]
    assert (ROOT / "examples" / "quickstart.py").is_file()
    assert "python -m pytest" in check
    assert "grep -m1 'python -m pytest' README.md" in (ROOT / ".ci" / "run").read_text()


def test_every_file_that_is_linked_exists() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_figures_are_those_that_were_measured() -> None:
    measured = (ROOT / "benchmarks" / "results" / "results.md").read_text()
    figures = {cell.strip() for line in measured.splitlines() for cell in line.split("|")}
    table = README.partition("## How it compares")[2].partition("What a chat turn adds")[0]
    rows = [line.split("|")[2:-1] for line in table.splitlines() if re.match(r"\| [^w]", line)]
    assert len(rows) >= 10
    for row in rows:
        assert {cell.strip() for cell in row} <= figures, row
