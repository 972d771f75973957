"""The fields of a `ThreadFilter`: how each is checked, compared with a thread, and found. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from forkpoint import filters, inputs
from forkpoint.catalog.threads import ThreadFilter
from forkpoint.errors import InvalidInput
from forkpoint.filters import contains_json
from forkpoint.results import STATUSES, Status
from forkpoint.storage.queries import Condition, Operator, ThreadQuery
from forkpoint.storage.rows import ThreadRow

SORT_KEYS = ("updated_at", "state_updated_at", "created_at", "thread_id", "status")

Criteria = Mapping[str, Any]
"""What a search asks for: the checked values of the fields of a `ThreadFilter` that were given."""


class SearchField(NamedTuple):
    """How one field of `ThreadFilter` is checked, compared with a thread, and found by a store.

    A new search field takes two places, and a third one if a term finds it:

    1. The attribute of `ThreadFilter`, with its description.
    2. Its line in `SEARCH_FIELDS`. A field with a `condition` is compared by each backend with a
       field of the thread's record.
    3. Where a comparison with each record would be too slow: its pair in
       `forkpoint.filters.thread_terms`, which puts the term into the search index of each backend.
    """

    check: Callable[[Any, str], Any]
    """Takes the value and the name of the field. Returns the plain value, None if none was given.
    Raises `InvalidInput`."""
    matches: Callable[[ThreadRow, Any], bool]
    """Whether a thread's record matches a checked value."""
    condition: tuple[str, Operator] | None = None
    """The field of the record with which a store compares the value, and how."""
    term: str | None = None
    """The kind of the terms by which a store finds the value; see `filters.thread_terms`."""
    is_any: bool = False
    """Whether one of several terms is enough."""


def _given(check: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """Return a check that lets None pass."""
    return lambda value, name: None if value is None else check(value, name)


_name = _given(inputs.identifier)


def _tags(value: object, name: str) -> Sequence[str] | None:
    return inputs.tags(value, name, inputs.FILTER_VALUES) or None


def _json(value: object, name: str) -> dict[str, Any] | None:
    return inputs.metadata_filter(value, name) or None


def _text_part(value: object, name: str) -> str:
    return filters.folded(inputs.identifier(value, name))


def _statuses(value: object, name: str) -> list[Status]:
    checked = inputs.tags([value] if isinstance(value, str) else value, name)
    if not checked:
        raise InvalidInput(f"{name} must be one of {list(STATUSES)} or some, and is empty")
    chosen = {inputs.choice(status, name, STATUSES) for status in checked}
    return [status for status in STATUSES if status in chosen]


def record_field(check: Callable[[Any, str], Any], field: str, operator: Operator) -> SearchField:
    """Return a search field that is compared with a field of each thread's record."""
    return SearchField(
        check, lambda row, value: Condition(field, operator, value).holds(row), (field, operator)
    )


SEARCH_FIELDS: dict[str, SearchField] = {
    "ids": record_field(_given(lambda value, _: inputs.ids(value)), "thread_id", "in"),
    "label": SearchField(_name, lambda row, label: row.described.label == label, term="label"),
    "label_contains": record_field(_given(_text_part), "folded_label", "contains"),
    "tags": SearchField(_tags, lambda row, tags: set(tags) <= set(row.described.tags), term="tag"),
    "any_tags": SearchField(
        _tags, lambda row, tags: not set(tags).isdisjoint(row.described.tags), None, "tag", True
    ),
    "metadata": SearchField(
        _json, lambda row, part: contains_json(row.described.metadata, part), term="metadata"
    ),
    # The values stand in the newest checkpoint's receipt: see `search.has_values`.
    "values": SearchField(_json, lambda *_: True, term="value"),
    # The terms of a search are those of one owner's threads; see `query_of`.
    "owner": SearchField(_name, lambda row, owner: row.thread.owner == owner),
    "status": record_field(_given(_statuses), "status", "in"),
    "created_after": record_field(inputs.moment, "created_at", ">="),
    "created_before": record_field(inputs.moment, "created_at", "<"),
    "updated_after": record_field(inputs.moment, "updated_at", ">="),
    "updated_before": record_field(inputs.moment, "updated_at", "<"),
    "source_thread_id": SearchField(
        _name, lambda row, source: row.source_thread_id == source, term="source"
    ),
}
"""The fields of `ThreadFilter`, by name. Times are in microseconds since 1970."""


def criteria_of(filter: object) -> Criteria:
    """Return the checked values of the fields of a filter that were given.

    Raises:
        InvalidInput: It is no `ThreadFilter`, or a value is of the wrong type.
    """
    if filter is None:
        return {}
    if not isinstance(filter, ThreadFilter):
        raise InvalidInput(f"filter must be a ThreadFilter, not {type(filter).__name__}")
    checked = {
        name: field.check(getattr(filter, name), name) for name, field in SEARCH_FIELDS.items()
    }
    return {name: value for name, value in checked.items() if value is not None}


def query_of(criteria: Criteria, sort_by: str, descending: bool, limit: int) -> ThreadQuery:
    """Return the query that asks a store for the threads that match."""
    owner = criteria.get("owner")
    terms: list[tuple[Any, ...]] = []
    any_terms: list[tuple[Any, ...]] = []
    conditions: list[Condition] = []
    for name, value in criteria.items():
        field = SEARCH_FIELDS[name]
        if field.condition is not None:
            conditions.append(Condition(*field.condition, value))
        if field.term is not None:
            (any_terms if field.is_any else terms).extend(_parts(field.term, value))
    return ThreadQuery(
        owner,
        filters.search_terms(owner, terms),
        filters.search_terms(owner, any_terms) if any_terms else (),
        conditions,
        sort_by,
        descending,
        limit=limit,
    )


def _parts(term: str, value: Any) -> Iterator[tuple[Any, ...]]:
    """Return what the terms of a value are hashed from: a name, several names, or a mapping."""
    if isinstance(value, dict):
        yield from ((term, *leaf) for leaf in filters.leaves(value))
    else:
        yield from ((term, name) for name in ([value] if isinstance(value, str) else value))


def is_exact(criteria: Criteria) -> bool:
    """Return whether a store finds exactly the threads that match, so that it can count them."""
    mappings = (value for value in criteria.values() if isinstance(value, dict))
    return all(map(filters.is_told_by_terms, mappings))


def matches(row: ThreadRow, criteria: Criteria, *, with_times: bool = False) -> bool:
    """Return whether a thread's record matches.

    Args:
        row: The record.
        criteria: What is asked for.
        with_times: Whether to compare times, too. A search leaves them to the store, which knows
            what they were at the moment of its snapshot.
    """
    return all(
        field.matches(row, value)
        for field, value in ((SEARCH_FIELDS[name], value) for name, value in criteria.items())
        if with_times or field.condition is None or field.condition[1] not in (">=", "<")
    )
