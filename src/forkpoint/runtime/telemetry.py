"""Traces and metrics by OpenTelemetry: a span for each operation, and nothing of its content.

All operations of a saver and of its catalogs pass through its runner. Where `opentelemetry-api` is
installed, an `ObservedRunner` stands before it. Where it is not, there is nothing in between.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import GeneratorType, TracebackType
from typing import Any

from forkpoint.runtime.runner import Runner

try:
    from opentelemetry import context as contexts
    from opentelemetry import metrics, trace
    from opentelemetry.trace import SpanKind, StatusCode

    IS_AVAILABLE = True
except ImportError:
    IS_AVAILABLE = False

THREAD_IDS_VARIABLE = "FORKPOINT_TRACE_THREAD_IDS"
"""The environment variable that leaves the ids of threads out of the spans if it is `false`."""


class Tally:
    """What an operation did so far."""

    __slots__ = (
        *("rows_read", "rows_written", "bytes_read", "bytes_written"),
        *("chunks_shared", "chunks_written", "retries"),
    )

    def __init__(self) -> None:
        self.rows_read = self.rows_written = self.bytes_read = self.bytes_written = 0
        self.chunks_shared = self.chunks_written = self.retries = 0


COUNTS = {name: f"forkpoint.{name.replace('_', '.')}" for name in Tally.__slots__}
"""What is counted, and what it is called outside."""


class _Current(threading.local):
    tally: Tally | None = None


current = _Current()
"""Of the operation that this thread runs: what it did so far; None if nobody wants to know."""


def observed(runner: Runner, system: str) -> Runner:
    """Return a runner whose operations are traced and measured, if OpenTelemetry is installed.

    Args:
        runner: Runs the operations.
        system: The database, as the attribute `db.system.name` has it.
    """
    return ObservedRunner(runner, system) if IS_AVAILABLE else runner


def count_leases(change: int) -> None:
    """Count a lease that began, by 1, or that ended, by -1."""
    if IS_AVAILABLE:
        _instruments().leases.add(change)


class ObservedRunner:
    """Runs operations as another runner does, each within a span.

    Args:
        runner: The other one.
        system: The database.
    """

    def __init__(self, runner: Runner, system: str) -> None:
        self.runner = runner
        self._system = system
        self._shows_threads = os.environ.get(THREAD_IDS_VARIABLE, "").lower() not in _NO

    def close(self) -> object:
        return self.runner.close()

    def run(self, operation: Callable[..., Any], *args: Any) -> Any:
        if not _is_observed():
            return self.runner.run(operation, *args)
        with self._observation(operation, args) as observation:
            result = observation.result = self.runner.run(observation.call, *args)
            return result

    async def arun(self, operation: Callable[..., Any], *args: Any) -> Any:
        if not _is_observed():
            return await self.runner.arun(operation, *args)
        with self._observation(operation, args) as observation:
            result = observation.result = await self.runner.arun(observation.call, *args)
            return result

    def _observation(self, operation: Callable[..., Any], args: tuple[Any, ...]) -> _Observation:
        thread_id = _thread_of(operation, args) if self._shows_threads else None
        return _Observation(operation, self._system, thread_id)


def _is_observed() -> bool:
    """Return whether the application has set what receives spans or metrics.

    The providers of OpenTelemetry's API itself receive nothing.
    """
    return not (
        type(trace.get_tracer_provider()).__module__.startswith("opentelemetry.trace")
        and type(metrics.get_meter_provider()).__module__.startswith("opentelemetry.metrics")
    )


class _Observation:
    """An operation that is traced and measured while a block of code lasts.

    Attributes:
        result: What it returned.
    """

    result: Any = None

    def __init__(self, operation: Callable[..., Any], system: str, thread_id: str | None) -> None:
        self._operation = operation
        self._tally = Tally()
        self._calls = 0
        name = operation.__name__.strip("_")
        self._attributes = {"db.system.name": system, "db.operation.name": name}
        self._span = _TRACER.start_span(
            f"forkpoint {name}", kind=SpanKind.CLIENT, attributes=self._attributes
        )
        if thread_id is not None:
            self._span.set_attribute("forkpoint.thread.id", thread_id)
        self._began = time.perf_counter()

    def call(self, *args: Any) -> Any:
        """Run the operation, or begin it if it is a generator; on whichever thread."""
        self._calls += 1
        with _Active(self._span, self._tally):
            outcome = self._operation(*args)
        return self._steps(outcome) if isinstance(outcome, GeneratorType) else outcome

    def _steps(self, steps: Any) -> Any:
        try:
            while True:
                try:
                    with _Active(self._span, self._tally):
                        waiting = next(steps)
                except StopIteration as end:
                    return end.value
                yield waiting
        finally:
            steps.close()

    def __enter__(self) -> _Observation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: object, __: TracebackType | None
    ) -> None:
        seconds = time.perf_counter() - self._began
        if kind is not None:
            self._attributes["error.type"] = kind.__name__
            self._span.set_status(StatusCode.ERROR)  # no message: it may have some of the content
            self._span.set_attribute("error.type", kind.__name__)
        self._tally.retries += max(self._calls - 1, 0)
        self._end_span()
        self._measure(seconds)

    def _end_span(self) -> None:
        if self._span.is_recording():
            for name, full_name in COUNTS.items():
                if count := getattr(self._tally, name):
                    self._span.set_attribute(full_name, count)
        self._span.end()

    def _measure(self, seconds: float) -> None:
        instruments, attributes, tally = _instruments(), self._attributes, self._tally
        instruments.duration.record(seconds, attributes)
        for name, counter in instruments.counters.items():
            if count := getattr(tally, name):
                counter.add(count, attributes)
        if getattr(self.result, "dry_run", None) is False:  # that of a retention
            swept = len(self.result.deleted) + len(self.result.trimmed)
            instruments.swept.add(swept, attributes)


class _Active:
    """Lets this thread count, and begin other spans, for an operation while a block lasts."""

    __slots__ = ("_before", "_span", "_tally", "_token")

    def __init__(self, span: Any, tally: Tally) -> None:
        self._span = span
        self._tally = tally
        self._token: Any = None

    def __enter__(self) -> None:
        self._before, current.tally = current.tally, self._tally
        if self._span.is_recording():
            self._token = contexts.attach(trace.set_span_in_context(self._span))

    def __exit__(self, *_: object) -> None:
        current.tally = self._before
        if self._token is not None:
            contexts.detach(self._token)


_NO = ("0", "false", "no", "off")


class _Instruments:
    """What counts and measures."""

    def __init__(self) -> None:
        meter = metrics.get_meter("forkpoint")
        self.duration = meter.create_histogram(
            "db.client.operation.duration", "s", "How long operations take."
        )
        self.counters = {
            name: meter.create_counter(full_name, "By" if "bytes" in name else "1")
            for name, full_name in COUNTS.items()
        }
        self.swept = meter.create_counter("forkpoint.threads.swept", "1")
        self.leases = meter.create_up_down_counter("forkpoint.leases.held", "1")


_MADE: list[_Instruments] = []


def _instruments() -> _Instruments:
    """Return the instruments, made on first use."""
    if not _MADE:
        _MADE.append(_Instruments())
    return _MADE[0]


if IS_AVAILABLE:
    _TRACER = trace.get_tracer("forkpoint")


def _thread_of(operation: Callable[..., Any], args: tuple[Any, ...]) -> str | None:
    """Return the id of the thread that an operation is about, if it is about one."""
    about = args[1] if len(args) > 1 else getattr(operation, "__self__", None)
    for name in ("new", "source", "address"):  # what is to be put or forked, and where
        about = getattr(about, name, about)
    if isinstance(about, dict):  # a config
        about = about.get("configurable", {}).get("thread_id")
    thread_id = getattr(about, "thread_id", about)
    return thread_id if isinstance(thread_id, str) else None
