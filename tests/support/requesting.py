"""Requests to every route of an application, as Hypothesis draws them from its description."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from hypothesis import strategies as st


class Operation(NamedTuple):
    """A method of a path, and what the application says of its parameters and its body."""

    method: str
    path: str
    parameters: Sequence[Mapping[str, Any]]
    body: Mapping[str, Any] | None
    schemas: Mapping[str, Any]


class Sent(NamedTuple):
    """A request, before the parts of it that stand for something are replaced."""

    operation: Operation
    path: Mapping[str, str]
    query: Mapping[str, Any]
    json: Any
    form: Mapping[str, str] | None

    def to(self, client: httpx.Client, meant: Mapping[str, str], **headers: str) -> httpx.Response:
        """Send it.

        Args:
            client: Sends it.
            meant: What stands for what, by whole texts.
            headers: What it is sent with beside.
        """
        sent = {
            "path": dict(self.path),
            "query": dict(self.query),
            "json": self.json,
            "form": self.form,
        }
        sent = _replaced(sent, meant)
        place = self.operation.path
        for name, value in sent["path"].items():
            place = place.replace(f"{{{name}}}", quote(value, safe="").replace(".", "%2E"))
        options = {"data": sent["form"]} if self.form is not None else {}
        options |= {"json": sent["json"]} if self.json is not None else {}
        return client.request(
            self.operation.method, place, params=sent["query"], headers=headers, **options
        )


def _replaced(value: Any, meant: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {meant.get(key, key): _replaced(part, meant) for key, part in value.items()}
    if isinstance(value, list):
        return [_replaced(part, meant) for part in value]
    return meant.get(value, value) if isinstance(value, str) else value


def operations_of(app: FastAPI) -> list[Operation]:
    """Return what an application answers to, what it does not describe to clients included."""
    routes = []
    for route in _routes(app.routes):
        route = copy.copy(route)
        route.include_in_schema = True
        routes.append(route)
    described = get_openapi(title="all", version="0", routes=routes)
    schemas = described["components"]["schemas"]
    operations = []
    for path, methods in described["paths"].items():
        for method, said in methods.items():
            content = said.get("requestBody", {}).get("content", {})
            body = content.get("application/json", {}).get("schema")
            operations.append(
                Operation(method.upper(), path, said.get("parameters", []), body, schemas)
            )
    return operations


def _routes(routes: Iterable[Any]) -> Iterator[APIRoute]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "original_router"):
            yield from _routes(route.original_router.routes)


Words = Callable[[str], "st.SearchStrategy[str]"]
"""Returns texts for what has a name."""


def requests_to(operation: Operation, words: Words, form: Sequence[str]) -> st.SearchStrategy[Sent]:
    """Return requests to an operation.

    Args:
        operation: The operation.
        words: What texts there are.
        form: The fields of forms, which no description has.
    """
    schemas = operation.schemas
    places: dict[str, dict[str, Any]] = {"path": {}, "query": {}, "header": {}}
    optional: dict[str, Any] = {}
    for said in operation.parameters:
        strategy = _values(said["schema"], said["name"], schemas, words)
        if said["in"] == "query" and not said.get("required"):
            optional[said["name"]] = strategy
        else:
            places[said["in"]][said["name"]] = strategy
    is_form = operation.body is None and operation.method == "POST"
    fields = st.fixed_dictionaries({}, optional={name: words(name) for name in form})
    body = st.none()
    if operation.body is not None:
        body = _values(operation.body, "", schemas, words)
    return st.builds(
        Sent,
        st.just(operation),
        st.fixed_dictionaries(places["path"]),
        st.fixed_dictionaries(places["query"], optional=optional),
        body,
        fields if is_form else st.none(),
    )


def _values(
    schema: Mapping[str, Any], name: str, schemas: Mapping[str, Any], words: Words
) -> st.SearchStrategy[Any]:
    """Return values of a schema. Texts are what may be meant by the name."""
    if "$ref" in schema:
        return _values(schemas[schema["$ref"].rpartition("/")[2]], name, schemas, words)
    if "anyOf" in schema:
        return st.one_of([_values(part, name, schemas, words) for part in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    kind = schema.get("type")
    if kind == "object" and "properties" in schema:
        parts = {
            key: _values(part, key, schemas, words) for key, part in schema["properties"].items()
        }
        needed = {key: parts.pop(key) for key in schema.get("required", ())}
        return st.fixed_dictionaries(needed, optional=parts)
    if kind == "array":
        return st.lists(_values(schema["items"], name, schemas, words), max_size=3)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        "string": words(name),
        "integer": st.integers(schema.get("minimum", 0), 3),
        "number": st.floats(1, 1000),
        "boolean": st.booleans(),
        "null": st.none(),
    }
    if kind in simple:
        return simple[kind]
    return _anything(words, is_object=kind == "object")


_KEYS = ("thread_id", "checkpoint_id", "checkpoint_ns", "run_id", "configurable", "metadata")


def _anything(words: Words, *, is_object: bool) -> st.SearchStrategy[Any]:
    leaves = st.one_of(words(""), st.integers(0, 3), st.booleans(), st.none())

    def mappings(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        named = {name: words(name) for name in _KEYS[:4]} | dict.fromkeys(_KEYS[4:], inner)
        return st.fixed_dictionaries({}, optional=named) | st.dictionaries(
            words(""), inner, max_size=2
        )

    if is_object:
        return mappings(leaves | mappings(leaves))
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=2) | mappings(inner))
