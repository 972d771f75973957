"""The notebooks and programs run from beginning to end, as a reader would run them."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from processes import run_program
from servers import PATIENCE_SECONDS

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="LangGraph's interrupt needs Python 3.11 in async nodes"
)
@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.ipynb")))
def test_a_notebook_runs(name: str) -> None:
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    kernel = {"metadata": {"path": str(EXAMPLES)}}
    NotebookClient(
        notebook, timeout=PATIENCE_SECONDS, kernel_name="python3", resources=kernel
    ).execute()

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 10
    assert all(cell.execution_count for cell in code)
    pictures = [output for cell in code for output in cell.outputs if "data" in output]
    assert any("image/svg+xml" in output.data for output in pictures)


def test_the_support_desk_example_runs(tmp_path: Path) -> None:
    done = run_program(EXAMPLES / "thread_operations.py", tmp_path / "desk.db", directory=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "case-1: Your refund is on its way." in done.stdout
    assert "nothing was written" in done.stdout
    assert done.stdout.count("checkpoints archived") == 2
