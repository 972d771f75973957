"""Modules that are imported when they are used: few programs need them."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class ModuleWhenUsed:
    """Stands for a module, and imports it when something of it is asked for.

    Args:
        name: The module's full name.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._name), name)
