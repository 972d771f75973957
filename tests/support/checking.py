"""What several test modules share: building checkpoints, and calling a saver."""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

from forkpoint import SafeSerializer
from forkpoint.operations.gc import CollectionResult, collect
from forkpoint.operations.turns import in_turns
from forkpoint.runtime.steps import finish
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.testing.calls import checkpoint, config, id_of, put, value_of

_T = TypeVar("_T")


def collected(saver: ForkpointSaver, family: Any) -> CollectionResult:
    """Collect the chunks of a family."""
    storage = parts_of(saver).context.storage
    return finish(in_turns(storage, lambda turns: collect(turns, family)))


def counts_of(saver: ForkpointSaver) -> dict[str, int]:
    """Return how many checkpoints are listed of each thread."""
    return dict(Counter(found.config["configurable"]["thread_id"] for found in saver.list(None)))


def encrypted_serde(key: bytes = b"0123456789abcdef") -> EncryptedSerializer:
    """Return the default serializer, encrypting."""
    return EncryptedSerializer.from_pycryptodome_aes(SafeSerializer(), key=key)


class Api:
    """A saver, or a catalog, as tests call it: they drive its sync methods or their async twins.

    In the sync world the calls are made on the event loop's own thread, as in a notebook.
    """

    def __init__(self, saver: Any, world: str) -> None:
        self.saver = saver
        self.world = world

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            if self.world == "sync":
                return getattr(self.saver, name)(*args, **kwargs)
            return await getattr(self.saver, "a" + name)(*args, **kwargs)

        return call

    async def list(self, *args: Any, **kwargs: Any) -> list[Any]:
        if self.world == "sync":
            return list(self.saver.list(*args, **kwargs))
        return [found async for found in self.saver.alist(*args, **kwargs)]


def repeated(few: int, many: int) -> Any:
    """Have a test do something so many `times`: a few in every run, and many if slow."""
    return pytest.mark.parametrize("times", [few, pytest.param(many, marks=pytest.mark.slow)])


def one_by_one(names: str, cases: Iterable[Any]) -> Callable[[Any], Any]:
    """Have a test try all these cases with the same fixtures, for those cost more than a case.

    Args:
        names: What a case has the values of, as `pytest.mark.parametrize` takes it.
        cases: None of them leaves anything that matters to the next.
    """
    parameters = [name.strip() for name in names.split(",")]
    given_cases = [
        dict(zip(parameters, case if len(parameters) > 1 else [case], strict=True))
        for case in cases
    ]

    def decorate(test: Any) -> Any:
        def run(**fixtures: Any) -> None:
            for case in given_cases:
                with _told(case):
                    test(**fixtures, **case)

        async def arun(**fixtures: Any) -> None:
            for case in given_cases:
                with _told(case):
                    await test(**fixtures, **case)

        made: Any = arun if inspect.iscoroutinefunction(test) else run
        made.__name__, made.__doc__, made.__module__ = test.__name__, test.__doc__, test.__module__
        made.pytestmark = getattr(test, "pytestmark", [])
        fixtures = inspect.signature(test).parameters.values()
        made.__signature__ = inspect.Signature(
            [fixture for fixture in fixtures if fixture.name not in parameters]
        )
        return made

    return decorate


@contextmanager
def _told(case: Mapping[str, Any]) -> Iterator[None]:
    """Have a failure say which case it is of."""
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:
        raise AssertionError(f"with {case!r:.300}") from error


def drawn(few: int, many: int, *strategies: Any, **named: Any) -> Callable[[Any], Any]:
    """Have Hypothesis draw the arguments of a test: a few times in every run, and many if slow."""

    def decorate(test: Any) -> Any:
        given_test = given(*strategies, **named)

        def run(examples: int, **fixtures: Any) -> None:
            options = settings(max_examples=examples, suppress_health_check=list(HealthCheck))
            options(given_test(test))(**fixtures)

        run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
        fixtures = inspect.signature(given_test(test)).parameters.values()
        number = inspect.Parameter("examples", inspect.Parameter.KEYWORD_ONLY)
        run.__signature__ = inspect.Signature([*fixtures, number])  # type: ignore[attr-defined]
        slow = pytest.param(many, marks=pytest.mark.slow)
        return pytest.mark.parametrize("examples", [few, slow])(run)

    return decorate


def explore(machine: Callable[[], RuleBasedStateMachine], examples: int, steps: int) -> None:
    """Take so many steps of a state machine, so many times; they are the same every time."""
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def apart(call: Callable[..., _T]) -> Callable[..., _T]:
    """Call something in a generator, which has a state of exceptions of its own.

    One that is raised at an instruction where Python expects none leaves it behind.
    """

    @functools.wraps(call)
    def in_generator(*args: Any, **options: Any) -> _T:
        def steps() -> Iterator[_T]:
            yield call(*args, **options)

        return next(steps())

    return in_generator


__all__ = [
    "Api",
    "apart",
    "checkpoint",
    "collected",
    "config",
    "counts_of",
    "drawn",
    "encrypted_serde",
    "explore",
    "id_of",
    "one_by_one",
    "put",
    "repeated",
    "value_of",
]
