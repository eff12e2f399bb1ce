"""TOML tables read into data classes, and laid over each other.

Whatever does not fit (an unknown or missing key, a wrong type) is refused, naming the file and the key.
"""

import dataclasses
import math
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, cast

from stillmotion.errors import UserError

Table = Mapping[str, Any]
T = TypeVar("T")


def parse(text: str, source: Path) -> Table:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{source}: not valid TOML: {error}.") from error


def laid_over(table: Table, changes: Table) -> Table:
    """Replace a table's values by those of another, tables inside them likewise."""
    both = {
        name: laid_over(table[name], cast(Table, value))
        for name, value in changes.items()
        if isinstance(value, dict) and isinstance(table.get(name), dict)
    }
    return {**table, **changes, **both}


def read(kind: type[T], value: Any, source: Path, key: str) -> T:
    """Turn a TOML value into `kind`: a data class, tuple, mapping, literal or plain type."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise wrong(source, key, value, f"one of {', '.join(map(repr, typing.get_args(kind)))}")
        return value
    if origin is tuple:
        return cast(T, _read_list(typing.get_args(kind), value, source, key))
    if origin is UnionType:
        if not isinstance(value, typing.get_args(kind)):
            raise wrong(source, key, value, "text, a number, true or false")
        return value
    if origin is not None and issubclass(origin, Mapping):
        return cast(T, _read_mapping(typing.get_args(kind)[1], value, source, key))
    if dataclasses.is_dataclass(kind):
        return cast(T, _read_table(kind, value, source, key))
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, cast(type, accepted)) or (isinstance(value, bool) and kind is not bool):
        raise wrong(source, key, value, f"of type {kind.__name__}")
    if kind is float and not math.isfinite(cast(float, value)):
        raise wrong(source, key, value, "a finite number")
    return cast(T, float(value) if kind is float else value)


def _read_list(kinds: tuple[Any, ...], value: Any, source: Path, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise wrong(source, key, value, "a list")
    items = cast(list[Any], value)
    if kinds[-1:] == (...,):
        return tuple(read(kinds[0], item, source, key) for item in items)
    if len(items) != len(kinds):
        raise wrong(source, key, items, f"a list of {len(kinds)}")
    return tuple(read(kind, item, source, key) for kind, item in zip(kinds, items, strict=True))


def _read_mapping(kind: Any, value: Any, source: Path, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong(source, key, value, "a table")
    table = cast(dict[str, Any], value)
    return {name: read(kind, item, source, f"{key}.{name}") for name, item in table.items()}


def _read_table(kind: Any, value: Any, source: Path, key: str) -> Any:
    if not isinstance(value, dict):
        raise wrong(source, key, value, "a table")
    table = cast(dict[str, Any], value)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    dotted = {name: f"{key}.{name}" if key else name for name in (*fields, *table)}
    for name in table:
        if name not in fields:
            raise UserError(f"{source}: unknown key {dotted[name]}; known here are {', '.join(fields)}.")
    hints = typing.get_type_hints(kind)
    for name, field in fields.items():
        optional = (
            field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        )
        if name not in table and not optional:
            raise UserError(f"{source}: key {dotted[name]} is missing.")
    return kind(**{name: read(hints[name], item, source, dotted[name]) for name, item in table.items()})


def wrong(source: Path, key: str, value: object, wanted: str) -> UserError:
    return UserError(f"{source}: {key} is {value!r}, it must be {wanted}.")
