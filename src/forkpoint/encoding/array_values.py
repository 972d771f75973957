"""Arrays and numbers of NumPy, and times of pandas.

None of them is imported unless a value is of it, and pandas not even where one is read.

Each is the MessagePack extension of code 39, an array that begins with its name. So are the zones
of `forkpoint.encoding.zone_values`.

=========  ========================================================================================
name       what follows
=========  ========================================================================================
ndarray    the type of the elements (a text, or for a structured one the list that describes it),
           the shape, the order (`C` or `F`), whether it can be written to, and the bytes; of
           objects the list of them
masked     such an array of the data; one of the mask, or nil for none; what stands for a masked
           element, or nil for what NumPy takes; and whether the mask is hard
scalar     the type, and the bytes
timestamp  pandas: the number of units since 1970 in UTC, the unit, the time zone, and the fold
timedelta  pandas: the number of units, and the unit
nothing    NumPy's masked element: nothing
nat, na    pandas: nothing
=========  ========================================================================================
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from forkpoint.encoding import zone_values
from forkpoint.encoding.contents import CannotStore, Described, imported_member, only

ARRAY = 39


def describer_of(kind: type) -> Callable[[Any], Described] | None:
    """Return how values of a type are stored, if it is one of these, or a zone."""
    if kind is imported_member("numpy.ma", "MaskedArray"):
        return _describe_masked
    if kind is imported_member("numpy", "ndarray"):
        return lambda value: (ARRAY, ["ndarray", *_array(value)])
    scalar = imported_member("numpy", "generic")
    if scalar is not None and issubclass(kind, scalar) and kind.__module__ == "numpy":
        return _describe_scalar
    if kind is imported_member("pandas", "Timestamp"):
        return _describe_timestamp
    if kind is imported_member("pandas", "Timedelta"):
        return lambda value: (ARRAY, ["timedelta", value._value, value.unit])
    for name, (module, member) in _SINGLE_VALUES.items():
        value = imported_member(module, member)
        if value is not None and kind is type(value):
            return lambda _, name=name: (ARRAY, [name])  # type: ignore[misc]
    dump = zone_values.describer_of(kind)
    return None if dump is None else lambda value: (ARRAY, dump(value))


# Types with one value each, by their names in the store.
_SINGLE_VALUES = {
    "nothing": ("numpy.ma", "masked"),
    "nat": ("pandas", "NaT"),
    "na": ("pandas", "NA"),
}


def _array(value: Any) -> list[Any]:
    dtype = _dtype(value.dtype)
    order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
    if not value.dtype.itemsize:
        raise CannotStore("has elements of no bytes")
    if value.dtype.hasobject:
        if value.dtype.char != "O":  # it has fields that are, or NumPy's own texts of any length
            raise CannotStore(f"has the dtype {value.dtype}, which refers to objects")
        content: Any = value.ravel(order=order).tolist()
    else:
        content = value.tobytes(order=order)
    return [dtype, list(value.shape), order, bool(value.flags.writeable), content]


def _dtype(dtype: Any) -> Any:
    """Return a type of elements as it is stored.

    Raises:
        CannotStore: It would not come back as it is: its fields have gaps, say.
    """
    if dtype.metadata:
        raise CannotStore("has a dtype with metadata")
    if dtype.names is None:
        # Of two types of one size, the second is told by its letter: `longlong`.
        names: list[Any] = [dtype.str, dtype.str[0] + dtype.char]
    else:
        names = [_as_lists(dtype.descr)]
    for stored in names:
        try:
            loaded = _load_dtype(stored)
        except (TypeError, ValueError):
            continue
        if loaded == dtype and loaded.type is dtype.type and not dtype.isalignedstruct:
            return stored
    raise CannotStore(f"has the dtype {dtype}")


def _as_lists(part: Any) -> Any:
    return list(map(_as_lists, part)) if type(part) in (list, tuple) else part


def _load_dtype(stored: Any) -> Any:
    import numpy

    if isinstance(stored, str):
        if len(stored) > _DTYPE_LETTERS:
            raise ValueError("its dtype is not of the form that is written")
        return numpy.dtype(stored)
    return numpy.dtype([_field(*only(field, list)) for field in only(stored, list)])


_DTYPE_LETTERS = 32


def _field(name: Any, kind: Any, shape: Any = ()) -> Any:
    """Return a field of a structured type as NumPy describes it."""
    name = tuple(name) if isinstance(name, list) else name  # with a title
    return name, kind if isinstance(kind, str) else _load_dtype(kind), tuple(shape)


def _describe_masked(value: Any) -> Described:
    import numpy

    if not vars(value).keys() <= vars(numpy.ma.MaskedArray(0)).keys():
        raise CannotStore("has attributes of its own")
    mask = None if value.mask is numpy.ma.nomask else _array(numpy.ma.getmaskarray(value))
    fill_value, usual = value.fill_value, numpy.ma.default_fill_value(value)
    if type(fill_value) in (numpy.str_, numpy.bytes_) and fill_value == usual:
        fill_value = None  # it may be longer than the elements, to which it would be cut
    return ARRAY, ["masked", _array(value.data), mask, fill_value, bool(value.hardmask)]


def _describe_scalar(value: Any) -> Described:
    if value.dtype.hasobject:
        raise CannotStore("has fields that are objects")
    return ARRAY, ["scalar", _dtype(value.dtype), value.tobytes()[: value.dtype.itemsize]]


def _describe_timestamp(value: Any) -> Described:
    zone = value.tz if value.tz is None else value.to_pydatetime(warn=False).tzinfo
    return ARRAY, ["timestamp", value._value, value.unit, zone, value.fold]


def restore(content: Any) -> Any:
    """Return the value that was stored as this."""
    name, *rest = only(content, list)
    if name in _SINGLE_VALUES:
        if name == "nothing":
            import numpy.ma  # noqa: F401
        value = imported_member(*_SINGLE_VALUES[name])
        if value is None:
            raise ValueError("its module is not imported")
        return value
    return _RESTORERS[name](*rest)


def _restore_array(dtype: Any, shape: Any, order: Any, writeable: Any, content: Any) -> Any:
    import numpy

    kind = _load_dtype(dtype)
    sizes = [only(size, int) for size in only(shape, list)]
    if kind.hasobject:
        flat = numpy.empty(len(only(content, list)), dtype=object)
        for at, element in enumerate(content):
            flat[at] = element
    else:
        flat = numpy.frombuffer(bytearray(only(content, bytes)), dtype=kind)
    value = flat.reshape(sizes, order=order)
    value.flags.writeable = bool(writeable)
    return value


def _restore_masked(data: Any, mask: Any, fill_value: Any, is_hard: Any) -> Any:
    import numpy

    return numpy.ma.MaskedArray(
        _restore_array(*data),
        mask=numpy.ma.nomask if mask is None else _restore_array(*mask),
        fill_value=fill_value,
        hard_mask=bool(is_hard),
    )


def _restore_scalar(dtype: Any, content: Any) -> Any:
    import numpy

    kind = _load_dtype(dtype)
    if kind.hasobject or kind.itemsize != len(only(content, bytes)):
        raise ValueError("its bytes are not those of its type")
    if kind.kind == "U":  # an array would cut what is nothing at its end
        order = "be" if kind.str[0] == ">" else "le"
        return numpy.str_(content.decode(f"utf-32-{order}", "surrogatepass"))
    if kind.kind == "S" or not kind.itemsize:
        return kind.type(content)
    return numpy.frombuffer(bytearray(content), dtype=kind)[0]


def _restore_timestamp(value: Any, unit: Any, zone: Any, fold: Any) -> Any:
    pandas = _pandas()
    return pandas.Timestamp(only(value, int), unit=unit, tz=zone).as_unit(unit).replace(fold=fold)


def _restore_timedelta(value: Any, unit: Any) -> Any:
    import numpy

    return _pandas().Timedelta(numpy.timedelta64(only(value, int), unit)).as_unit(unit)


def _pandas() -> Any:
    """Return pandas, which is not imported because a row names it."""
    return sys.modules["pandas"]


_RESTORERS: dict[str, Callable[..., Any]] = {
    "ndarray": _restore_array,
    "masked": _restore_masked,
    "scalar": _restore_scalar,
    "timestamp": _restore_timestamp,
    "timedelta": _restore_timedelta,
    **zone_values.RESTORERS,
}
