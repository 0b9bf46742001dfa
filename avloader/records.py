"""Dataclasses as Arrow values and back, driven by their type hints, so that a new field needs no code here."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
import zlib
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["arrow_schema", "decode", "encode", "field_names", "pack", "unpack"]

T = TypeVar("T")

_PLAIN: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    bool: pa.bool_(),
    Fraction: pa.string(),
    npt.NDArray[np.int64]: pa.binary(),
    tuple[tuple[int, int], ...]: pa.list_(pa.list_(pa.int64())),
}


def arrow_schema(record: type) -> pa.Schema:
    """The columns of a table that holds one `record` a row.

    A nested dataclass becomes a struct, a `Fraction` text ("30000/1001"), an array of integers what `pack` makes of it;
    fields that may be None are nullable.
    """
    return pa.schema(_fields(record))


def field_names(fields: Iterable[pa.Field], prefix: str = "") -> set[str]:
    """Names of all columns of a schema, those inside structs as "outer.inner"."""
    names = set()
    for field in fields:
        names.add(prefix + field.name)
        if pa.types.is_struct(field.type):
            names |= field_names(field.type, f"{prefix}{field.name}.")
    return names


def encode(value: Any) -> Any:
    """A dataclass (or a field of one) as what pyarrow builds columns from."""
    kind: type = type(value)
    names = _names(kind)
    if names is not None:
        return {name: encode(getattr(value, name)) for name in names}
    if isinstance(value, np.ndarray):
        return pack(value)
    return str(value) if isinstance(value, Fraction) else value


def pack(values: npt.NDArray[np.int64]) -> bytes:
    """Integers as the differences between them (the first to 0), little-endian int64, compressed by zlib.

    Times of frames are mostly evenly spaced: those of an hour take some hundred bytes.
    """
    return zlib.compress(np.diff(values, prepend=0).astype("<i8").tobytes(), level=1)


def unpack(data: bytes) -> npt.NDArray[np.int64]:
    """What `pack` made `data` from."""
    return np.frombuffer(zlib.decompress(data), dtype="<i8").cumsum()


def decode(record: type[T], values: pa.StructScalar) -> T:
    """The dataclass that `encode` made `values` from; arrays are read-only."""
    made: T = _decoder(typing.cast(type, record))(values.as_py())
    return made


def _fields(record: type) -> list[pa.Field]:
    return [pa.field(name, _arrow_type(hint), nullable=nullable) for name, hint, nullable in _hints(record)]


def _arrow_type(hint: Any) -> pa.DataType:
    if dataclasses.is_dataclass(hint):
        return pa.struct(_fields(typing.cast(type, hint)))
    return _PLAIN[hint]


@functools.cache
def _decoder(record: type) -> Callable[[dict[str, Any]], Any]:
    """What makes a `record` of its fields as Python values; put together once for a million media."""
    fields = [(name, _converter(hint)) for name, hint, _ in _hints(record)]

    def make(values: dict[str, Any]) -> Any:
        return record(
            *[
                value if convert is None or value is None else convert(value)
                for convert, value in [(convert, values[name]) for name, convert in fields]
            ]
        )

    return make


def _converter(hint: Any) -> Callable[[Any], Any] | None:
    """What makes a field's value of Arrow's; None: they are the same."""
    if hint in (str, int, bool):
        return None
    if dataclasses.is_dataclass(hint):
        return _decoder(typing.cast(type, hint))
    if hint == npt.NDArray[np.int64]:
        return _unpacked
    return _fraction if hint is Fraction else _pairs


def _unpacked(data: bytes) -> npt.NDArray[np.int64]:
    array = unpack(data)
    array.flags.writeable = False
    return array


@functools.lru_cache(4096)  # media have the same few rates and time bases
def _fraction(text: str) -> Fraction:
    return Fraction(text)


def _pairs(values: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, values))


@functools.cache  # a million media have but a handful of types
def _names(kind: type) -> tuple[str, ...] | None:
    """Names of the fields of a dataclass; None for other types."""
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None


@functools.cache
def _hints(record: type) -> list[tuple[str, Any, bool]]:
    """Name, type without None, and whether it may be None, of every field."""
    result = []
    for name, hint in typing.get_type_hints(record).items():
        parts = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
        (plain,) = (part for part in parts if part is not types.NoneType)
        result.append((name, plain, len(parts) > 1))
    return result
