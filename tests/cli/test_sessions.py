"""The sessions in the documentation are what a terminal shows, and every command is described."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from command_line import forkpoint
from forkpoint.cli.app import app

ROOT = Path(__file__).parents[2]
README, PAGE = ROOT / "README.md", ROOT / "docs" / "command.md"
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def steps(session: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a session, and what it prints."""
    for step in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
        command, _, output = step.partition("\n")
        yield command, output


def without_chance(text: str) -> str:
    """Return an output without the ids and the times that differ from run to run."""
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "AN-ID", text)
    return re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:[\d.+:]+)?", "A TIME", text)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store that the examples of the README leave."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    for block in blocks(README, "python"):
        exec(compile(block, README.name, "exec", dont_inherit=True), namespace)


def test_the_sessions_are_what_a_terminal_shows(store: None) -> None:
    code, shown = 0, 0
    environment: dict[str, str] = {}
    for session in (*blocks(README, "console"), *blocks(PAGE, "console")):
        for command, expected in steps(session):
            program, *arguments = command.split()
            if program == "export":
                environment.update([arguments[0].split("=")])
                continue
            if program == "echo":
                assert expected == f"{code}\n"
                continue
            assert program == "forkpoint"
            code, out, err = forkpoint(*arguments, **environment)
            assert without_chance(out + err) == without_chance(expected), command
            shown += 1
    assert shown >= 10


def test_the_policy_of_the_page_is_one(store: None, tmp_path: Path) -> None:
    (policy,) = blocks(PAGE, "toml")
    (tmp_path / "policy.toml").write_text(policy)
    outcome = forkpoint("retain", "--policy", "policy.toml", "--dry-run", store="agent.db")
    assert outcome.out == "0 threads would be deleted, 0 would be trimmed\n"


def test_every_command_is_described() -> None:
    page, overview = PAGE.read_text(), forkpoint("--help").out
    assert overview.startswith(
        "Usage: forkpoint [OPTIONS] COMMAND [ARGS]...\n\n  Look into a store"
    )
    assert "Exit codes: 0 done; 1 found something" in overview
    for name, command in COMMANDS.items():
        outcome = forkpoint(name, "--help")
        assert outcome.code == 0
        first = command.help.partition("\n")[0]
        assert first in outcome.out
        assert first.endswith(".")
        assert re.search(rf"^  {name} +{re.escape(first)}$", overview, re.MULTILINE), overview
        assert re.search(rf"`{name}[ `]", page), name
        for parameter in command.params:
            assert parameter.help, (name, parameter.name)
        assert "--json" in outcome.out or name == "serve"
    assert forkpoint().code in (0, 2)  # it is the same text
    assert forkpoint("--version").out.startswith("forkpoint ")


def test_what_removes_asks() -> None:
    asking = {"rollback", "trim", "purge", "delete", "retain", "repair", "sweep"}
    assert asking == {name for name in COMMANDS if "--yes" in forkpoint(name, "--help").out}
