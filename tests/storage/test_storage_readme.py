"""The page that says how to write a backend is true: its code runs, outside of this project."""

from __future__ import annotations

import inspect
import os
import re
import runpy
import shutil
import subprocess
import sys
from abc import ABCMeta
from pathlib import Path

import pytest

from checking import checkpoint, config, value_of
from forkpoint import storage
from forkpoint.storage import interface, plan, receipts, shared
from forkpoint.testing import SaverContract

PAGE = Path(storage.__file__).parent / "README.md"
BACKEND = Path(__file__).parent / "memory_backend"


STORAGE = """from memory_backend import Database, MemoryStorage


class MyStorage(MemoryStorage):
    def __init__(self):
        super().__init__(Database())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a stranger has: a backend, and the code of the page."""
    saver, suite = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    shutil.copytree(BACKEND, tmp_path / "memory_backend")
    (tmp_path / "my_storage.py").write_text(STORAGE)
    (tmp_path / "my_saver.py").write_text(saver)
    (tmp_path / "test_my_saver.py").write_text(suite)
    return tmp_path


def test_the_code_of_the_page_makes_a_saver_and_a_suite(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    suite = runpy.run_path(str(folder / "test_my_saver.py"))["TestMySaver"]
    assert issubclass(suite, SaverContract)
    with suite().make_saver() as saver:
        saver.put(config(), checkpoint({"n": 1}), {}, {"n": 1})
        assert value_of(saver.get_tuple(config())) == {"n": 1}


@pytest.mark.slow
def test_a_stranger_who_has_only_the_package_and_the_page_has_a_correct_saver(folder: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"],
        cwd=folder,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert re.search(r"[1-9]\d* passed", run.stdout)
    assert "skipped" not in run.stdout


def test_what_the_page_names_is_there() -> None:
    page = PAGE.read_text()
    for module in (shared, receipts, plan):
        for name in re.findall(rf"`{module.__name__.split('.')[-1]}\.(\w+)[`(]", page):
            assert name == "py" or hasattr(module, name), name
    named = [getattr(interface, name) for name in interface.__all__]
    roles = {each.__name__ for each in named if type(each) is ABCMeta and inspect.isabstract(each)}
    assert roles == {name for name in roles if f"`{name}" in page}
    for file in re.findall(r"`(\w+\.(?:py|md))`", page):
        assert (PAGE.parent / file).exists(), file
