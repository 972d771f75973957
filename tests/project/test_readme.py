"""The code of the README and of its pages runs, and its commands are those that CI runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
SERVER = "mongodb://localhost:27017/?replicaSet=rs0"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def run(page: Path, namespace: dict[str, object], server: str) -> None:
    for number, block in enumerate(blocks(page, "python")):
        code = compile(
            block.replace(SERVER, server), f"{page.name}, block {number}", "exec", dont_inherit=True
        )
        exec(code, namespace)


WITH_CODE = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_every_code_block_runs_one_after_the_other(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mongo_server: Any
) -> None:
    """Those of a page go on from those of the README."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    run(README, namespace, mongo_server.uri)
    run(page, namespace, mongo_server.uri)


def test_there_is_code_to_run() -> None:
    assert len(blocks(README, "python")) >= 4
    assert {page.stem for page in WITH_CODE} >= {"history", "threads", "mongodb"}
    assert [SERVER in block for page in WITH_CODE for block in blocks(page, "python")].count(
        True
    ) == 1


def test_the_commands_name_what_is_there() -> None:
    run_it, check = blocks(README, "sh")
    assert run_it.split(" && ")[1].split() == ["python", "examples/quickstart.py"]
    assert (ROOT / "examples" / "quickstart.py").is_file()
    assert "python -m pytest" in check
    assert "grep -m1 'python -m pytest' README.md" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("page", [README, CONTRIBUTING, *PAGES], ids=lambda page: page.stem)
def test_every_file_that_is_linked_exists(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)[)#]", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_page_is_linked() -> None:
    linked = set(re.findall(r"\]\((docs/[^)#]+)", README.read_text()))
    assert linked == {f"docs/{page.name}" for page in PAGES}


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "benchmarks.md"], ids=lambda p: p.stem)
def test_the_figures_are_those_that_were_measured(page: Path) -> None:
    measured = (ROOT / "benchmarks" / "results" / "results.md").read_text()
    figures = {cell.strip() for line in measured.splitlines() for cell in line.split("|")}
    tables = page.read_text().partition("| workload")[2].partition("\n## MongoDB")[0]
    table = tables.partition("\n\n")[0]
    rows = [line.split("|")[2:-1] for line in table.splitlines() if re.match(r"\| [^w]", line)]
    assert len(rows) >= 8
    for row in rows:
        assert {cell.strip() for cell in row} <= figures, row
