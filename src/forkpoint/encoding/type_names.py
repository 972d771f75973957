"""How a stored value names its type, and how the type is found again. Nothing is imported.

A name is a list: the module, the qualified name, and for a generic of Pydantic the names of its
arguments as a third item. What is no class is named in the same way: `["typing", "Union", [...]]`,
`["builtins", "list", [...]]` for `list[...]`, and `["literal", "str:a"]`. An argument that has no
name is there as the text that represents it, `["<text>", "typing.Annotated[...]"]`: such a generic
is found where the program has made it.
"""

from __future__ import annotations

import builtins
import re
import sys
import types
import typing
import weakref
from collections.abc import Callable, Mapping
from functools import reduce
from hashlib import sha256
from operator import or_
from typing import Any
from weakref import WeakValueDictionary

from forkpoint import untrusted
from forkpoint.errors import UnreadableValue

TypeName = tuple[Any, ...]
"""`(module, qualified name)`, or with the names of a generic's arguments behind it."""

_ARGUMENTS_MAX = 32
_DEPTH_MAX = 16

_seen: WeakValueDictionary[TypeName, type] = WeakValueDictionary()
"""The types that this process has stored values of, wherever they were made."""
_hidden: dict[TypeName, tuple[weakref.ref[type], ...]] = {}
"""Those of which another one of the same name was stored later."""
_HIDDEN_MAX = 8  # of one name


# The names of types


def is_class(value: object) -> bool:
    """Return whether a value is a class, whatever it says: `list[int]` does on Python 3.10."""
    return issubclass(type(value), type)


def name_of(kind: type) -> TypeName:
    """Return the name of a type. From now on this process finds the type under it."""
    name = _name_of(kind)
    known = _seen.get(name)
    if known is not None and known is not kind:
        others = [each for each in _hidden.get(name, ()) if each() is not kind]
        _hidden[name] = (*others[1 - _HIDDEN_MAX :], weakref.ref(known))
        weakref.finalize(kind, _uncover, name).atexit = False
    _seen[name] = kind
    return name


def _uncover(name: TypeName) -> None:
    """Find, under the name of a type that is gone, the one that it hid."""
    if _seen.get(name) is not None:
        return
    hidden = [kind for each in _hidden.pop(name, ()) if (kind := each()) is not None]
    if hidden:
        _seen[name] = hidden.pop()
    if hidden:
        _hidden[name] = tuple(map(weakref.ref, hidden))


def _name_of(kind: type) -> TypeName:
    generic = vars(kind).get("__pydantic_generic_metadata__")
    if generic and generic["origin"] is not None:
        arguments = [_argument_name(each) or _text_name(each) for each in generic["args"]]
        return (*_name_of(generic["origin"]), tuple(arguments))
    module, qualified = _plain(kind.__module__), _plain(kind.__qualname__)
    if module == "builtins" and vars(builtins).get(qualified, kind) is not kind:
        module = _MADE
    return module, qualified


def _plain(name: Any) -> str:
    """Return what a class says of its name as text: it may say anything."""
    text = untrusted.characters(name) if isinstance(name, str) else untrusted.shown(name)
    return text.encode("utf-8", "backslashreplace").decode()


_MADE = "<exec>"  # such a class says that it is one of Python's own


def _text_name(argument: Any) -> TypeName:
    text = _ADDRESS.sub("", repr(argument))
    if len(text) > _TEXT_MAX:
        text = f"{text[:_TEXT_MAX]}... {sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"
    return _TEXT, text


_TEXT = "<text>"  # no module has this name
_TEXT_MAX = 80
_ADDRESS = re.compile(" at 0x[0-9A-Fa-f]+")  # of this process


def _argument_name(argument: Any) -> TypeName | None:
    """Return the name of a generic's argument, or None if it has none: a type variable, say."""
    if type(argument) in _FORMS:
        names = tuple(map(_argument_name, argument.__args__))
        origin = _FORMS[type(argument)](argument)
        return None if origin is None or None in names else (*origin, names)
    if typing.get_origin(argument) is typing.Literal:
        values = tuple(map(_literal_name, argument.__args__))
        return None if None in values else ("typing", "Literal", values)
    if argument is ...:
        return _ELLIPSIS
    if argument is None:
        return _NOTHING
    return _name_of(argument) if is_class(argument) else None


_ELLIPSIS = ("builtins", "Ellipsis")
_NOTHING = ("builtins", "None")  # which is another argument than its type
_NO_CLASSES = {("builtins", "NoneType"): type(None), _NOTHING: None, _ELLIPSIS: ...}
_MISSING = object()


def _origin_of_typing(argument: Any) -> TypeName | None:
    """Return the name of what is in `typing`: `List`, `Union`."""
    name = "Union" if argument.__origin__ is typing.Union else getattr(argument, "_name", None)
    return ("typing", name) if name in _TYPING else None


_TYPING = ("Union", "List", "Dict", "Set", "FrozenSet", "Tuple", "Sequence", "Mapping", "Iterable")

_FORMS: dict[type, Callable[[Any], TypeName | None]] = {
    types.GenericAlias: lambda argument: _name_of(argument.__origin__),
    types.UnionType: lambda _: ("types", "UnionType"),
    type(list[int] | None): lambda _: ("types", "UnionType"),
    type(typing.List[int]): _origin_of_typing,  # noqa: UP006
    type(typing.Union[int, str]): _origin_of_typing,  # noqa: UP007
}


def _literal_name(value: Any) -> TypeName | None:
    kind = type(value).__name__
    return ("literal", f"{kind}:{value}") if type(value) in _LITERALS.values() else None


_LITERALS: dict[str, type] = {"str": str, "int": int, "bool": bool}


def as_list(name: TypeName) -> list[Any]:
    """Return a name as it is stored."""
    module, qualified, *arguments = name
    return [module, qualified, *([as_list(each) for each in inner] for inner in arguments)]


def _is_name(value: Any, depth: int = 0) -> bool:
    """Return whether this has the shape of a name."""
    return (
        isinstance(value, (list, tuple))
        and 2 <= len(value) <= 3
        and all(isinstance(part, str) for part in value[:2])
        and (len(value) == 2 or _are_names(value[2], depth + 1))
    )


def _are_names(value: Any, depth: int) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) <= _ARGUMENTS_MAX
        and depth <= _DEPTH_MAX
        and all(_is_name(each, depth) for each in value)
    )


def from_stored(stored: Any) -> TypeName:
    """Return a name that was read, as one that can be a key.

    Raises:
        UnreadableValue: It has not the shape of a name.
    """
    if type(stored) is list and len(stored) == 2:
        module, qualified = stored
        if type(module) is str and type(qualified) is str:
            return module, qualified
    if not _is_name(stored):
        raise UnreadableValue("a stored object does not name its type")
    return _frozen(stored)


def _frozen(name: Any) -> TypeName:
    module, qualified, *arguments = name
    return (module, qualified, *(tuple(map(_frozen, each)) for each in arguments))


def text(name: TypeName) -> str:
    """Return a name as people write it."""
    module, qualified, *arguments = name
    inner = ", ".join(map(text, arguments[0])) if arguments else ""
    return f"{module}.{qualified}[{inner}]" if arguments else f"{module}.{qualified}"


# The types of names


def seen(name: TypeName) -> type | None:
    """Return the type of this name that this process has stored values of."""
    return _seen.get(name)


def find(name: TypeName) -> type | None:
    """Return the type that a name means in this process, if it is known here."""
    known = _seen.get(name)
    if len(name) > 2:
        is_current = known is not None and find(name[:2]) is _origin_of(known)
        return known if is_current else generic(name, find)
    bound = None if "<locals>" in name[1] else _find_class(*name)
    if bound is None or known is None or bound is known:
        return bound if known is None else known
    # Made again since, in a notebook say: unless it is another one that is just called so there.
    return bound if _name_of(bound) == name else known


def is_current(name: TypeName, kind: type) -> bool:
    """Return whether a name still means a type that it has meant."""
    if len(name) == 2:
        module = sys.modules.get(name[0])
        if type(module) is types.ModuleType and module.__dict__.get(name[1]) is kind:
            return True
    return find(name) is kind


def _origin_of(kind: type) -> Any:
    return vars(kind)["__pydantic_generic_metadata__"]["origin"]


def _find_class(module: str, qualified: str) -> type | None:
    kind: Any = sys.modules.get(module)
    for part in qualified.split("."):
        kind = None if kind is None else _member(kind, part)
    return kind if is_class(kind) else None


def generic(name: TypeName, class_of: Callable[[TypeName], type | None]) -> type | None:
    """Return the generic of Pydantic that a name with arguments means.

    Args:
        name: The name.
        class_of: Returns the class of a name without arguments, or None.
    """
    origin = class_of(name[:2])
    if origin is None or "__pydantic_generic_metadata__" not in vars(origin):
        return None
    if any(each[0] == _TEXT for each in name[2]):
        return _made_before(origin, name)
    arguments = tuple(_argument(each, class_of) for each in name[2])
    if _MISSING in arguments:
        return None
    parametrized: type = origin[arguments]  # type: ignore[index] # Pydantic makes each once
    return parametrized


def _made_before(origin: Any, name: TypeName) -> type | None:
    """Return the generic of a class that this process has made under a name."""
    made = [
        kind
        for kind in type.__subclasses__(origin)
        if "__pydantic_generic_metadata__" in vars(kind) and _name_of(kind) == name
    ]
    return made[0] if len(made) == 1 else None


def _argument(name: TypeName, class_of: Callable[[TypeName], type | None]) -> Any:
    """Return the argument of a generic that has this name, or `_MISSING` if it is not known."""
    if name in _NO_CLASSES:
        return _NO_CLASSES[name]
    if len(name) == 2:
        return _given(class_of(name))
    module, qualified, inner = name
    if (module, qualified) == ("typing", "Literal"):
        return typing.Literal[tuple(_literal(*each) for each in inner)]
    arguments = tuple(_argument(each, class_of) for each in inner)
    if _MISSING in arguments:
        return _MISSING
    if (module, qualified) == ("types", "UnionType"):
        return reduce(or_, arguments)
    if module == "typing":
        return getattr(typing, qualified)[arguments] if qualified in _TYPING else _MISSING
    origin = class_of((module, qualified))
    if origin is None or "__pydantic_generic_metadata__" in vars(origin):
        return _given(generic(name, class_of))
    return types.GenericAlias(origin, arguments)


def _given(kind: type | None) -> Any:
    """Return a type, or `_MISSING`. Its metaclass may say that it is false."""
    return _MISSING if kind is None else kind


def _literal(_: str, text: str, *rest: Any) -> Any:
    kind, _, value = text.partition(":")
    return value == "True" if kind == "bool" else _LITERALS[kind](value)


def _member(of: Any, name: str) -> Any:
    """Return what a module or a class defines under a name, without running any of its code."""
    members: Mapping[str, Any] = vars(of) if hasattr(of, "__dict__") else {}
    return members.get(name)


def find_elsewhere(named: TypeName, is_last_part: bool = False) -> type | None:
    """Return the one type of this name in an imported module, where no variable of that name is it.

    Args:
        named: The name.
        is_last_part: Whether it is the last part of a name, and the type may be nested in another:
            LangGraph's serializer stores no more.
    """
    module, name, *arguments = named
    if arguments or "." in name or module not in sys.modules:
        return None
    members = list(vars(sys.modules[module]).values())  # it may be imported at the moment
    if _absent.get((module, name, is_last_part)) == len(members):
        return None
    found: dict[int, type] = {}  # by their ids: what a metaclass says of hashes does not matter
    visited: set[int] = set()
    pending = [value for value in members if is_class(value)]
    while pending:
        outer = pending.pop()
        if outer.__module__ != module or id(outer) in visited:
            continue
        visited.add(id(outer))
        pending += [value for value in vars(outer).values() if is_class(value)]
        if name == (outer.__name__ if is_last_part else outer.__qualname__):
            found[id(outer)] = outer
    if len(found) == 1:
        return found.popitem()[1]
    if len(_absent) >= _ABSENT_MAX:
        _absent.clear()
    _absent[module, name, is_last_part] = len(members)
    return None


_absent: dict[tuple[str, str, bool], int] = {}
"""What was not found in a module, and how many members that had. There may be many such objects."""
_ABSENT_MAX = 4096
