"""Dependencies point one way."""

from __future__ import annotations

import ast
from pathlib import Path

import forkpoint

PACKAGE = Path(forkpoint.__file__).parent
LAYERS = [
    {"errors", "filters", "previews", "printing", "receipts", "at_fork", "types"},
    {
        "hashing",
        "open_files",
        "untrusted",
        "workers",
        "caches",
        "clocks",
        "render",
        "render_diff",
        "mongodb_errors",
        "mongodb_identity",
        "mongodb_statements",
        "mongodb_stored",
    },
    {"json_text", "options"},
    {"render_svg"},
    {"chunking", "builtin_values", "type_names", "type_codecs", "stored_object"},
    {"array_values", "base_values", "langgraph_values"},
    {"object_values"},
    {"packing", "messages"},
    {"entries", "removal", "inputs", "serde", "steps", "sqlite_errors", "sqlite_full"},
    {
        "codec",
        "resuming",
        "runner",
        "group_commit",
        "shown",
        "tombstones",
        "threads",
        "sqlite_schema",
        "sqlite_statements",
        "sqlite_connections",
    },
    {"storage", "aiosqlite_runner"},
    {"turns", "sqlite_setup", "sqlite_rows"},
    {"sqlite_tombstones"},
    {
        "archive",
        "collect",
        "memory",
        "owners",
        "records",
        "rows",
        "searching",
        "sqlite_catalog",
        "sqlite_pages",
        "mongodb_records",
    },
    {"run_metadata"},
    {
        "operations",
        "mongodb_features",
        "mongodb_pages",
        "sqlite_threads",
        "mongodb_log",
        "mongodb_tombstones",
        "mongodb_documents",
    },
    {
        "copying",
        "deltas",
        "mongodb_catalog",
        "mongodb_indexes",
        "removing_turns",
        "rolling_back",
        "sqlite_removing",
    },
    {"sqlite_copying"},
    {"sqlite_heads"},
    {"sqlite_session"},
    {
        "forking",
        "answering",
        "removing",
        "diffing",
        "finding",
        "listing",
        "thread_heads",
        "thread_pages",
        "sqlite_transactions",
        "mongodb_reading",
        "mongodb_puts",
    },
    {"cataloguing", "time_travel", "mongodb_locks", "sqlite_storage"},
    {"leases", "saver", "handing_over", "mongodb_removing"},
    {"mongodb_collecting"},
    {"mongodb_copying"},
    {"mongodb_heads"},
    {"mongodb_giving"},
    {"mongodb_session"},
    {"mongodb_bulk"},
    {"mongodb_storage"},
    {"retention", "sqlite", "mongodb"},
    {"catalog"},
    {"__init__"},
]


def imports_of(path: Path) -> set[str]:
    found = set()
    tree = ast.parse(path.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in set(ast.walk(tree)) - for_types:
        if isinstance(node, ast.ImportFrom) and node.module == "forkpoint":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("forkpoint."):
            found.add((node.module or "").removeprefix("forkpoint."))
    return found


def test_each_module_imports_only_from_the_layers_below() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    assert modules == set().union(*LAYERS)
    for height, layer in enumerate(LAYERS):
        below = set().union(*LAYERS[:height])
        for module in layer:
            assert imports_of(PACKAGE / f"{module}.py") <= below, module


def test_the_pure_modules_do_no_io() -> None:
    for module in (
        "chunking",
        "filters",
        "removal",
        "printing",
        "render",
        "render_diff",
        "render_svg",
        "searching",
        "codec",
        "hashing",
        "inputs",
        "messages",
        "records",
    ):
        tree = ast.parse((PACKAGE / f"{module}.py").read_text())
        imported = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert not imported & {"sqlite3", "asyncio", "socket", "aiosqlite", "threading"}, module
