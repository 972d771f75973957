"""The folders, and the files in them, know only what is below them."""

from __future__ import annotations

import ast
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
    {"saver"},
    {"sqlite", "mongodb", "catalog"},
    {"__init__"},
]
UNKNOWN_TO_BACKENDS = {"operations", "catalog", "sqlite", "mongodb"}
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
WITHOUT_IO = [
    *(name for name in FILES if name.startswith(("encoding.", "pictures."))),
    *("filters", "json_text", "inputs", "previews", "results"),
    *(
        "storage.plan",
        "storage.record_checksums",
        "catalog.criteria",
        "catalog.cursors",
        "operations.rollback_plan",
    ),
]


def folder_of(name: str) -> str:
    """Return the folder of a file, by the file's name as `FILES` has it."""
    if name == "__init__":
        return name
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


def imports_of(path: Path) -> set[str]:
    """Return the files of forkpoint that a file imports when it runs."""
    tree = ast.parse(path.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    return {
        name if name in FILES else f"{name}.__init__"
        for node in set(ast.walk(tree)) - for_types
        for name in names_imported_by(node)
    }


IMPORTS = {name: imports_of(path) for name, path in FILES.items()}


def test_each_folder_has_its_layer() -> None:
    folders = {folder_of(name) for name in FILES}
    assert folders == set().union(*LAYERS)
    assert sum(map(len, LAYERS)) == len(folders)


@pytest.mark.parametrize("name", FILES)
def test_a_file_knows_its_own_folder_and_those_below(name: str) -> None:
    folder = folder_of(name)
    height = next(height for height, layer in enumerate(LAYERS) if folder in layer)
    known = set().union(*LAYERS[:height], {folder})
    if folder in ("sqlite", "mongodb"):
        known -= UNKNOWN_TO_BACKENDS - {folder}
    assert {folder_of(imported) for imported in IMPORTS[name]} <= known


def test_no_files_import_each_other() -> None:
    TopologicalSorter(IMPORTS).prepare()


def test_a_folder_exports_and_does_nothing_else() -> None:
    for name, path in FILES.items():
        if name.endswith(".__init__"):
            for node in ast.parse(path.read_text()).body:
                assert isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign), name


def test_no_file_of_ours_is_imported_within_a_function() -> None:
    for name, path in FILES.items():
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                imported = {one for node in ast.walk(function) for one in names_imported_by(node)}
                assert not imported or (name, function.name) == ("__init__", "__getattr__"), name


@pytest.mark.parametrize("name", WITHOUT_IO)
def test_what_computes_only_does_no_io(name: str) -> None:
    imported = {
        part.name
        for node in ast.walk(ast.parse(FILES[name].read_text()))
        if isinstance(node, ast.Import)
        for part in node.names
    }
    assert not imported & {"sqlite3", "asyncio", "socket", "aiosqlite"}
