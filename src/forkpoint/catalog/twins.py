"""The async twins of the catalog's methods, made from the sync methods."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from copy import copy
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, overload

from forkpoint.operations.context import Context
from forkpoint.runtime.runner import Runner
from forkpoint.runtime.steps import Steps

if TYPE_CHECKING:
    from typing import Concatenate

    from typing_extensions import ParamSpec

    _P = ParamSpec("_P")

_T = TypeVar("_T")


class Operations:
    """Runs operations on a store, in the sync or in the async world."""

    def __init__(self, context: Context, runner: Runner, *, is_async: bool = False) -> None:
        self._context = context
        self._runner = runner
        self._run: Callable[..., Any] = runner.arun if is_async else runner.run

    def in_async_world(self) -> Operations:
        """Return what runs the same operations without blocking the event loop."""
        return Operations(self._context, self._runner, is_async=True)

    @overload
    def run(self, operation: Callable[..., Steps[_T]], *args: Any) -> _T: ...
    @overload
    def run(self, operation: Callable[..., _T], *args: Any) -> _T: ...
    def run(self, operation: Callable[..., Any], *args: Any) -> Any:
        """Run an operation, whose first argument is the context, and return its result.

        In the async world, return an awaitable of the result.
        """
        return self._run(operation, self._context, *args)


class _HasOperations(Protocol):
    _operations: Operations


_S = TypeVar("_S", bound=_HasOperations)


def async_twin(
    method: Callable[Concatenate[_S, _P], _T],
) -> Callable[Concatenate[_S, _P], Coroutine[Any, Any, _T]]:
    """Return the async twin of a method: the same arguments, checks, result and errors.

    The method must return what `Operations.run` returns. The twin calls it on a copy of its object
    whose operations run in the async world, and awaits that.
    """

    @wraps(method)
    async def twin(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        in_async_world = copy(self)
        in_async_world._operations = self._operations.in_async_world()
        return await cast("Awaitable[_T]", method(in_async_world, *args, **kwargs))

    twin.__name__ = f"a{method.__name__}"
    twin.__qualname__ = method.__qualname__.replace(method.__name__, twin.__name__)
    twin.__doc__ = f"Do what `{method.__name__}` does."
    return twin
