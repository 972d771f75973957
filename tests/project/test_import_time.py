"""What a program does not use is not imported, and is there when it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import forkpoint

MODULES_OF_A_SAVER = 136
"""How many modules of forkpoint a saver of SQLite may bring."""
NOT_FOR_A_SAVER = ("archive", "catalog", "cli", "mongodb", "server", "testing", "transfer")


def modules_after(program: str) -> set[str]:
    """Return the modules that are imported in a new process that has run a program."""
    code = f"import sys\n{program}\nprint(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    return set(ran.stdout.split())


def ours(modules: set[str]) -> set[str]:
    return {name for name in modules if name.partition(".")[0] == "forkpoint"}


def test_a_saver_brings_what_it_needs() -> None:
    modules = modules_after("import forkpoint; forkpoint.SqliteSaver")

    assert len(ours(modules)) <= MODULES_OF_A_SAVER
    assert {name for name in modules if name.startswith("forkpoint.pictures.")} == {
        "forkpoint.pictures.shown"
    }
    unused = {f"forkpoint.{wing}" for wing in NOT_FOR_A_SAVER}
    assert not modules & {*unused, "pymongo", "html", "typer", "starlette"}


def test_the_package_alone_brings_no_backend() -> None:
    modules = modules_after("import forkpoint; from forkpoint import InvalidInput")

    assert "forkpoint.errors" in modules
    assert not modules & {"forkpoint.sqlite", "forkpoint.mongodb", "forkpoint.saver", "aiosqlite"}


MISSING = """
sys.modules.update({"pymongo": None, "Crypto": None, "sqlite3": None})
import os
import forkpoint
from forkpoint.opening import open_store, store_of_environment

def refused(call, error):
    try:
        call()
    except error as raised:
        return str(raised)
    raise AssertionError("it is not refused")

assert "pip install 'forkpoint[mongodb]'" in refused(lambda: forkpoint.MongoDBSaver, ImportError)
opening = lambda: open_store("mongodb://host/database")
assert "pip install 'forkpoint[mongodb]'" in refused(opening, forkpoint.InvalidInput)
assert "sqlite3" in refused(lambda: forkpoint.SqliteSaver, ImportError)
assert "is no path" in refused(lambda: open_store("sqlite:///"), forkpoint.InvalidInput)
assert "FORKPOINT_STORE" in refused(store_of_environment, forkpoint.InvalidInput)
os.environ.update(FORKPOINT_STORE="x.db", LANGGRAPH_AES_KEY="k" * 16)
assert "needs pycryptodome" in refused(store_of_environment, forkpoint.InvalidInput)
"""


def test_what_is_not_installed_is_named() -> None:
    modules_after(MISSING)
    for missing, said in (("typer", "forkpoint[cli]"), ("sqlite3", "ModuleNotFoundError")):
        code = f"import runpy, sys; sys.modules[{missing!r}] = None; runpy.run_module('forkpoint')"
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert ran.returncode == 1
        assert said in ran.stderr.splitlines()[-1]


def test_every_public_name_is_there_before_it_is_used() -> None:
    names = [*forkpoint.__all__, "MongoDBSaver"]
    code = (
        "import forkpoint\n"
        f"assert set({forkpoint.__all__!r}) <= set(dir(forkpoint))\n"
        "assert not hasattr(forkpoint, 'NoSuchName')\n"
        f"from forkpoint import {', '.join(names)}\n"
        "assert ThreadCatalog is forkpoint.ThreadCatalog is vars(forkpoint)['ThreadCatalog']\n"
        "from forkpoint import *\n"
        "import forkpoint.catalog.catalog\n"
        "assert ThreadCatalog is forkpoint.catalog.catalog.ThreadCatalog\n"
    )
    modules_after(code)


def test_the_names_of_savers_that_langgraph_has_lead_to_those_that_are_here() -> None:
    for name, own in (("AsyncSqliteSaver", "SqliteSaver"), ("AsyncMongoDBSaver", "MongoDBSaver")):
        with pytest.raises(ImportError, match=f"its {own} serves sync and async code alike"):
            exec(f"from forkpoint import {name}")


def test_a_type_checker_sees_the_names_that_are_imported_when_they_are_used() -> None:
    tree = ast.parse(Path(forkpoint.__file__).read_text())
    for_types = next(node for node in tree.body if isinstance(node, ast.If))
    declared = {
        part.name: (node.module or "").partition(".")[2]
        for node in for_types.body
        if isinstance(node, ast.ImportFrom)
        for part in node.names
    }

    assert declared == forkpoint._IMPORTED_WHEN_USED
