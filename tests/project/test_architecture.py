"""The folders, and the files in them, know only what is below them."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import forkpoint

PACKAGE = Path(forkpoint.__file__).parent
TOP = "the files beside the folders"
LAYERS = [
    {TOP},
    {"runtime", "encoding", "pictures"},
    {"storage"},
    {"operations"},
    {"archive"},
    {"saver"},
    {"sqlite", "mongodb", "catalog"},
    {"testing", "server", "transfer"},
    {"__init__"},
    {"opening"},
    {"cli", "langgraph_server"},
    {"__main__"},
]
BACKENDS = {"sqlite", "mongodb"}
NEEDING_AN_EXTRA = {("cli.serve", "serve")}
"""The functions that import what may not be installed."""
UNKNOWN_TO_BACKENDS = {"operations", "archive", "catalog", *BACKENDS}
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
WITHOUT_IO = [
    *(name for name in FILES if name.startswith(("encoding.", "pictures."))),
    *("filters", "json_text", "json_values", "inputs", "langgraph_rules", "previews", "results"),
    *(
        "storage.plan",
        "storage.record_checksums",
        "catalog.criteria",
        "catalog.cursors",
        "operations.rollback_plan",
    ),
    *("archive.parts", "archive.lines", "transfer.checks", "transfer.comparing"),
]


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Return what is in each file: not where tests are only collected, which each worker does."""
    return {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def folder_of(name: str) -> str:
    """Return the folder of a file, by the file's name as `FILES` has it."""
    if name in ("__init__", "opening", "langgraph_server"):
        return name
    if name.endswith("__main__"):
        return "__main__"
    return name.split(".")[0] if "." in name else TOP


def names_imported_by(node: ast.AST) -> set[str]:
    """Return the files of forkpoint that a statement imports."""
    if isinstance(node, ast.Import):
        return {part.name.partition(".")[2] for part in node.names if is_ours(part.name)}
    if not isinstance(node, ast.ImportFrom) or not is_ours(node.module or ""):
        return set()
    module = (node.module or "").partition(".")[2]
    inside = {f"{module}.{part.name}".strip(".") for part in node.names}
    known = {name for name in inside if name in FILES or f"{name}.__init__" in FILES}
    return known | ({module} if inside - known else set())


def is_ours(module: str) -> bool:
    return module.partition(".")[0] == "forkpoint"


def imports_of(tree: ast.AST) -> set[str]:
    """Return the files of forkpoint that a file imports when it runs."""
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    return {
        name if name in FILES else f"{name}.__init__".lstrip(".")
        for node in set(ast.walk(tree)) - for_types
        for name in names_imported_by(node)
    }


@functools.cache
def imports() -> dict[str, set[str]]:
    return {name: imports_of(tree) for name, tree in trees().items()}


@pytest.fixture(scope="module", autouse=True)
def no_trees_afterwards() -> Iterator[None]:
    """Forget what is in the files: whoever looks for garbage later would look at all of it."""
    yield
    trees.cache_clear()


def test_each_folder_has_its_layer() -> None:
    folders = {folder_of(name) for name in FILES}
    assert folders == set().union(*LAYERS)
    assert sum(map(len, LAYERS)) == len(folders)


def folders_known_to(folder: str) -> set[str]:
    """Return the folders that the files of a folder may import."""
    height = next(height for height, layer in enumerate(LAYERS) if folder in layer)
    known = set().union(*LAYERS[:height])
    if folder in BACKENDS:
        known -= UNKNOWN_TO_BACKENDS
    if folder == "testing":  # the contract is that of every backend
        known -= BACKENDS
    return known | {folder}


def test_a_file_knows_its_own_folder_and_those_below() -> None:
    known = {folder: folders_known_to(folder) for layer in LAYERS for folder in layer}
    unknown = {
        name: sorted(set(map(folder_of, imported)) - known[folder_of(name)])
        for name, imported in imports().items()
    }
    assert {name: folders for name, folders in unknown.items() if folders} == {}


def test_pytest_is_imported_by_the_contract_alone() -> None:
    for name, tree in trees().items():
        names = {
            part.name if isinstance(node, ast.Import) else node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for part in node.names
        }
        assert "pytest" not in names or folder_of(name) == "testing", name


def test_no_files_import_each_other() -> None:
    TopologicalSorter(imports()).prepare()


def test_the_init_of_a_folder_only_exports() -> None:
    for name, tree in trees().items():
        if name.endswith(".__init__"):
            for node in tree.body:
                assert isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign), name


def test_no_file_of_ours_is_imported_within_a_function() -> None:
    for name, tree in trees().items():
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                imported = {one for node in ast.walk(function) for one in names_imported_by(node)}
                assert not imported or (name, function.name) in NEEDING_AN_EXTRA, name


def test_pure_files_import_no_io() -> None:
    for name in WITHOUT_IO:
        imported = {
            part.name
            for node in ast.walk(trees()[name])
            if isinstance(node, ast.Import)
            for part in node.names
        }
        assert not imported & {"sqlite3", "asyncio", "socket", "aiosqlite"}, name


LONGEST_FILE = 450
LONGEST_FUNCTION = 40
"""Lines, without the docstring."""
LONG_FILES: set[str] = set()
LONG_FUNCTIONS = {
    "server.app.create_app",
}


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many lines a function has, without its docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    docstring = function.body[0]
    return lines - ((docstring.end_lineno or 0) - docstring.lineno + 1)


def test_no_file_is_long() -> None:
    long = {name for name, path in FILES.items() if path.read_text().count("\n") > LONGEST_FILE}
    assert long == LONG_FILES


def test_no_function_is_long() -> None:
    long = {
        f"{name}.{node.name}"
        for name in FILES
        for node in ast.walk(trees()[name])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if lines_of(node) > LONGEST_FUNCTION
    }
    assert long == LONG_FUNCTIONS


ONLY_LANGGRAPHS = ("__pregel", "__start__", "__remove_all__", "__overwrite__", "branch:")


def test_one_file_has_the_names_that_are_langgraphs() -> None:
    for name in FILES:
        if name == "langgraph_rules" or name.startswith("testing."):
            continue  # what shows that a saver does what LangGraph asks of it says so itself
        for node in ast.walk(trees()[name]):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not node.value.startswith(ONLY_LANGGRAPHS), name
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("langgraph."):
                imported = {part.name for part in node.names}
                assert not imported & {"WRITES_IDX_MAP", "ERROR", "INTERRUPT", "RESUME"}, name
