"""The schema an Avro record was written with, read from its JSON text (Avro 1.12, "Schema Declaration").

Read whole, also where no reader of values exists: what a window does not want is stepped over, and for that its type must
be known. This file does not know columns, windows, or where the text comes from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from assets.stream.document import shown

PRIMITIVES = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")
MOST_PARTS = 10_000  # types named again and again can make a small text a large schema

_WIDTHS = {"null": 0, "boolean": 1, "float": 4, "double": 8}


class WriterRefused(ValueError):
    """The writer's schema is none, or is one whose records cannot be read into the window's columns."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A type. name: Avro's. logical: its logicalType or "".

    parts: of a record's fields, a union's branches, an array's or a map's values. names: of a record's fields, an enum's
    symbols. width: in bytes, where every value has the same; else None. weight: how many types are in it.
    """

    name: str
    logical: str = ""
    parts: tuple[Kind, ...] = ()
    names: tuple[str, ...] = ()
    width: int | None = None
    weight: int = 1

    def __str__(self) -> str:
        if self.name == "union":
            return f"a union of {' and '.join(part.logical or part.name for part in self.parts)}"
        inside = f" of {self.parts[0].logical or self.parts[0].name}" if self.name in ("array", "map") else ""
        return f"Avro {self.logical or self.name}{inside}"


def record_of(text: str) -> Kind:
    """The record that a schema's text declares. Raises WriterRefused."""
    try:
        kind = _Names().kind(json.loads(text), "")
    except (ValueError, RecursionError) as error:
        if isinstance(error, WriterRefused):
            raise
        raise WriterRefused("the text is no JSON that can be read") from None
    if kind.name != "record":
        raise WriterRefused(f"{kind} where a record was wanted: a row needs named fields")
    return kind


class _Names:
    """The types that have a name, by it; None while one is being read."""

    def __init__(self) -> None:
        self._known: dict[str, Kind | None] = {}

    def kind(self, node: Any, space: str) -> Kind:
        if isinstance(node, list):
            return _whole("union", parts=tuple(self.kind(branch, space) for branch in node))
        if isinstance(node, str):
            return Kind(node, width=_WIDTHS.get(node)) if node in PRIMITIVES else self._named(node, space)
        if not isinstance(node, dict) or "type" not in node:
            raise WriterRefused("a part of it is no Avro type: neither a name, nor a list, nor an object with `type`")
        name, logical = node["type"], node.get("logicalType", "")
        logical = logical if isinstance(logical, str) else ""
        if name in ("array", "map"):
            items = self.kind(node.get("items" if name == "array" else "values"), space)
            return Kind(name, logical, (items,), weight=items.weight + 1)
        if name in ("record", "error", "enum", "fixed"):
            return self._declared(node, name, logical, space)
        if name in PRIMITIVES:
            return Kind(name, logical, width=_WIDTHS.get(name))
        return self.kind(name, space)

    def _declared(self, node: dict[str, Any], name: str, logical: str, space: str) -> Kind:
        full = node.get("name")
        if not isinstance(full, str):
            raise WriterRefused(f"a {name} in it has no name")
        if "." not in full:
            space = node.get("namespace", space) or ""
            full = f"{space}.{full}" if space else full
        space = full.rpartition(".")[0]
        self._known[full] = None
        if name == "enum":
            kind = Kind("enum", logical, names=_strings(node.get("symbols"), full))
        elif name == "fixed":
            kind = Kind("fixed", logical, width=_size(node.get("size"), full))
        else:
            kind = self._record(node.get("fields"), full, space)
        self._known[full] = kind
        return kind

    def _record(self, fields: Any, full: str, space: str) -> Kind:
        if not isinstance(fields, list) or not all(isinstance(field, dict) and "type" in field for field in fields):
            raise WriterRefused(f"record {shown(full)} has no list of fields with types")
        names = _strings([field.get("name") for field in fields], full)
        return _whole("record", tuple(self.kind(field["type"], space) for field in fields), names)

    def _named(self, name: str, space: str) -> Kind:
        full = name if "." in name or not space else f"{space}.{name}"
        full = full if full in self._known else name
        if full not in self._known:
            raise WriterRefused(f"it names a type {shown(name)} and does not declare it (references are not followed)")
        kind = self._known[full]
        if kind is None:
            raise WriterRefused(f"record {shown(name)} contains itself: such a type is never a row")
        return kind


def _whole(name: str, parts: tuple[Kind, ...], names: tuple[str, ...] = ()) -> Kind:
    weight = 1 + sum(part.weight for part in parts)
    if weight > MOST_PARTS:
        raise WriterRefused(f"it has {weight} parts > {MOST_PARTS}, the most a schema may have here")
    widths = [part.width for part in parts if part.width is not None]
    return Kind(name, "", parts, names, sum(widths) if name == "record" and len(widths) == len(parts) else None, weight)


def _strings(found: Any, owner: str) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found) or len({*found}) != len(found):
        raise WriterRefused(f"{shown(owner)} needs a list of different names")
    return tuple(found)


def _size(found: Any, owner: str) -> int:
    if type(found) is not int or not 0 <= found < 2**31:
        raise WriterRefused(f"fixed {shown(owner)} has no size between 0 and 2^31")
    return found
