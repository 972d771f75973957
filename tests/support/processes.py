"""Other processes, which begin with everything imported already."""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest


def environment() -> dict[str, str]:
    """Return the environment of a process that imports what this one can."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@functools.cache
def fork_server() -> ForkServerContext:
    """Return what makes processes, each a copy of one that has imported what the tests do.

    To import LangGraph takes much longer than most of what they do then.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["imported"])
    with pytest.MonkeyPatch.context() as patch:
        # Without it, older Pythons look for these modules elsewhere, and do not say so.
        patch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
        forkserver.ensure_running()
    return context


def run_program(
    program: Path, *arguments: str | Path, directory: Path
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, as `python program` in this directory would."""
    command = [str(part) for part in (program, *arguments)]
    with tempfile.TemporaryDirectory() as outputs:
        process = fork_server().Process(target=_run, args=(command, directory, outputs))
        process.start()
        process.join()
        assert process.exitcode is not None
        texts = [Path(outputs, name).read_text(encoding="utf-8") for name in _OUTPUTS]
    return subprocess.CompletedProcess(command, process.exitcode, *texts)


_OUTPUTS = ("stdout", "stderr")


def _run(command: list[str], directory: Path, outputs: str) -> None:
    os.chdir(directory)
    for name in _OUTPUTS:
        with open(os.path.join(outputs, name), "wb") as file:
            os.dup2(file.fileno(), getattr(sys, name).fileno())
    sys.argv = command
    sys.path.insert(0, os.path.dirname(command[0]))
    runpy.run_path(command[0], run_name="__main__")


__all__ = ["environment", "fork_server", "run_program"]
