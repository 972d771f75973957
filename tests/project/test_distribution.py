"""What is handed on as a source distribution is all that the tests need."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def git(*arguments: str) -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    command = ["git", "-C", str(ROOT), "ls-files", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_nothing_that_is_tracked_is_ignored() -> None:
    """Hatchling leaves out what `.gitignore` names, and so does `git add`."""
    assert git("--cached", "--ignored", "--exclude-standard") == []


def test_every_folder_is_in_a_source_distribution() -> None:
    settings = (ROOT / "pyproject.toml").read_text()
    included = settings.partition("[tool.hatch.build.targets.sdist]")[2].partition("]")[0]
    folders = {name.partition("/")[0] for name in git() if "/" in name}
    assert [name for name in sorted(folders) if f'"{name}"' not in included] == []
