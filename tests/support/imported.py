"""What other processes begin with, imported by the one that they are copies of.

Nobody looks for garbage in it: not while it is imported, and not in each copy.
"""

from __future__ import annotations

import gc
from importlib import import_module

IMPORTED = [
    "aiosqlite",
    "hypothesis",
    "langgraph.graph",
    "motor.motor_asyncio",
    "numpy",
    "pytest",
    "forkpoint.cli.app",
    "forkpoint.mongodb.saver",
    "graphs",
    "stores",
    "checking",
]

gc.disable()
for module in IMPORTED:
    import_module(module)
gc.freeze()
gc.enable()
