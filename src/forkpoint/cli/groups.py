"""Options that several commands have: a data class of them is one parameter of a command."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer

from forkpoint.catalog.threads import ThreadFilter
from forkpoint.cli.arguments import moment, pairs

_Command = TypeVar("_Command", bound=Callable[..., None])


def with_options(command: _Command) -> _Command:
    """Let a command have an option for each field of the data classes that it takes."""
    # Not `get_type_hints`: on Python 3.10 it hides what says of a parameter whose default is None.
    given_parameters = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in given_parameters.items()
        if dataclasses.is_dataclass(parameter.annotation)
    }
    parameters: list[inspect.Parameter] = []
    for name, parameter in given_parameters.items():
        if name in groups:
            parameters += _options_of(groups[name])
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for name, group in groups.items():
            fields = [field.name for field in dataclasses.fields(group)]
            given[name] = group(**{field: given.pop(field) for field in fields})
        command(**given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return typing.cast(_Command, run)


def _options_of(group: Any) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(group)
    ]


def _text(flag: str, help: str, metavar: str = "TEXT") -> Any:
    return typer.Option(flag, help=help, metavar=metavar)


@dataclass(frozen=True)
class Selection:
    """Which threads are meant: those for which everything holds that is given."""

    ids: Annotated[list[str] | None, _text("--id", "With this id, or one of these.", "ID")] = None
    label: Annotated[str | None, _text("--label", "With this label.")] = None
    label_contains: Annotated[
        str | None, _text("--label-contains", "With a label that contains this, in any case.")
    ] = None
    tags: Annotated[list[str] | None, _text("--tag", "With this tag; all of these.", "TAG")] = None
    any_tags: Annotated[
        list[str] | None, _text("--any-tag", "With this tag, or one of these.", "TAG")
    ] = None
    metadata: Annotated[
        list[str] | None, _text("--metadata", "Whose metadata have this.", "KEY=VALUE")
    ] = None
    values: Annotated[
        list[str] | None, _text("--value", "Whose previews have this.", "CHANNEL=VALUE")
    ] = None
    status: Annotated[
        list[str] | None,
        _text("--status", "idle, busy, interrupted or error; one of these.", "STATUS"),
    ] = None
    created_after: Annotated[
        str | None,
        _text(
            "--created-after",
            "Made then or later: 2026-01-31T12:00 (UTC), or 30d ago.",
            "TIME",
        ),
    ] = None
    created_before: Annotated[str | None, _text("--created-before", "Made before.", "TIME")] = None
    updated_after: Annotated[
        str | None, _text("--updated-after", "Active then or later.", "TIME")
    ] = None
    updated_before: Annotated[
        str | None, _text("--updated-before", "Not active since.", "TIME")
    ] = None
    source_thread_id: Annotated[
        str | None, _text("--source", "Forked or cloned from this thread.", "ID")
    ] = None

    @property
    def is_empty(self) -> bool:
        """Whether it is all threads."""
        given = (getattr(self, field.name) for field in dataclasses.fields(self))
        return all(value is None or value == [] for value in given)  # "" is what no thread has

    @property
    def is_of_ids_only(self) -> bool:
        """Whether nothing is given but ids, at most."""
        return dataclasses.replace(self, ids=None).is_empty

    def filter(self) -> ThreadFilter:
        """Return it as the catalog takes it."""
        times = ("created_after", "created_before", "updated_after", "updated_before")
        given: dict[str, Any] = {
            name: moment(text) for name in times if (text := getattr(self, name)) is not None
        }
        return ThreadFilter(
            ids=self.ids or None,
            label=self.label,
            label_contains=self.label_contains,
            tags=self.tags or (),
            any_tags=self.any_tags or (),
            metadata=pairs(self.metadata),
            values=pairs(self.values),
            status=self.status or None,  # type: ignore[arg-type]  # the catalog checks it
            source_thread_id=self.source_thread_id,
            **given,
        )
