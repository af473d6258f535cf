"""From the text of an element to a JSON value, as the tool's schema has it. Never fails: what fits no type is text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]
MAX_REFERENCES = 16
ANYTHING: Schema = {}


class Typed:
    """One place in a tool's schema. Schemas are other people's text: what is not of the expected form means nothing."""

    def __init__(self, schema: object, root: object) -> None:
        self._root = root
        self.schema = _resolve(schema, root)

    @property
    def types(self) -> list[str]:
        """Types that a value may have here, in the schema's order; none if it does not say."""
        found: list[str] = []
        self._collect(self.schema, found, 0, set())
        return found

    @property
    def is_string(self) -> bool:
        return self.types == ["string"]

    @property
    def is_array(self) -> bool:
        return "array" in self.types and "object" not in self.types

    def property(self, name: str) -> Typed:
        """The place of an object's property `name`."""
        for schema in self._alternatives():
            properties = schema.get("properties")
            if isinstance(properties, Mapping) and name in properties:
                return Typed(properties[name], self._root)
        for schema in self._alternatives():
            others = schema.get("additionalProperties")
            if isinstance(others, Mapping):
                return Typed(others, self._root)
        return Typed(ANYTHING, self._root)

    def knows(self, name: str) -> bool:
        return any(isinstance(p := s.get("properties"), Mapping) and name in p for s in self._alternatives())

    def item(self) -> Typed:
        """The place of an array's items."""
        for schema in self._alternatives():
            if isinstance(schema.get("items"), Mapping):
                return Typed(schema["items"], self._root)
        return Typed(ANYTHING, self._root)

    def read(self, text: str) -> Any:
        """The value of an element without elements in it: where only an array fits, a text is its one item."""
        value = self.value(text)
        if self.is_array and isinstance(value, str) and "string" not in self.types:
            return [self.item().value(text)]
        return value

    def value(self, text: str) -> Any:
        """The value that a text without elements in it stands for."""
        types = self.types
        for kind in sorted(types, key=lambda t: t == "string"):  # a string takes anything, so it comes last
            found = _read(text, kind)
            if found is not _NOT:
                return found
        if not types:
            return next((c for c in self.choices() if not isinstance(c, str) and json.dumps(c) == text.strip()), text)
        return text

    def choices(self) -> list[Any]:
        """What `enum` and `const` allow."""
        found: list[Any] = []
        for schema in self._alternatives():
            enum = schema.get("enum")
            found += enum if isinstance(enum, list | tuple) else []
            found += [schema["const"]] if "const" in schema else []
        return found

    def _alternatives(self) -> list[Schema]:
        found, level, seen = [self.schema], [self.schema], {id(self.schema)}
        for _ in range(3):
            parts = [
                _resolve(part, self._root)
                for schema in level
                for key in ("anyOf", "oneOf", "allOf")
                if isinstance(schema.get(key), Sequence) and not isinstance(schema[key], str)
                for part in schema[key]
            ]
            level = []
            for part in parts:
                if id(part) not in seen:  # one that refers to itself many times would be many to the third power
                    seen.add(id(part))
                    level.append(part)
            found += level
        return found

    def _collect(self, schema: Schema, found: list[str], depth: int, seen: set[int]) -> None:
        if id(schema) in seen:
            return
        seen.add(id(schema))
        found += [kind for kind in kinds(schema) if kind not in found]
        if found or depth == 3:
            return
        for key in ("anyOf", "oneOf", "allOf"):
            parts = schema.get(key)
            for part in parts if isinstance(parts, list) else []:
                inner: list[str] = []
                self._collect(_resolve(part, self._root), inner, depth + 1, seen)
                found += [kind for kind in inner if kind not in found]


def kinds(schema: Schema) -> list[str]:
    """The JSON types that a schema itself names; failing that, the one that its other keywords are about."""
    given = schema.get("type")
    named = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    found = list(dict.fromkeys(kind for kind in named if isinstance(kind, str)))
    if not found and "enum" not in schema and "const" not in schema:
        if isinstance(schema.get("properties"), Mapping):
            found = ["object"]
        elif isinstance(schema.get("items"), Mapping):
            found = ["array"]
    return found


_NOT = object()


def _resolve(schema: object, root: object) -> Schema:
    for _ in range(MAX_REFERENCES):
        if not isinstance(schema, Mapping):
            return ANYTHING
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#"):
            return schema
        schema = root
        for part in reference.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            schema = schema.get(name) if isinstance(schema, Mapping) else None
    return ANYTHING


def _read(text: str, kind: str) -> Any:
    """`text` as a value of a JSON type, or _NOT."""
    stripped = text.strip()
    match kind:
        case "string":
            return text
        case "boolean":
            return {"true": True, "false": False}.get(stripped.lower(), _NOT)
        case "null":
            return None if stripped in ("null", "None") else _NOT
        case "integer" | "number":
            try:
                return _integer(stripped) if kind == "integer" else _number(stripped)
            except ValueError:
                return _NOT
        case "array" | "object":
            wanted: type = list if kind == "array" else dict
            if not stripped:
                return wanted()
            try:
                found = json.loads(stripped, parse_constant=_refuse)
            except (ValueError, RecursionError):
                return _NOT
            return found if isinstance(found, wanted) else _NOT
    return _NOT


def _integer(text: str) -> int:
    if not text.lstrip("+-").isdecimal():  # Python also reads 1_000
        raise ValueError(text)
    return int(text)


def _number(text: str) -> int | float:
    try:
        return _integer(text)
    except ValueError:
        value = float(text.replace("_", "?"))
        if not math.isfinite(value):
            raise ValueError(text) from None
        return value


def _refuse(constant: str) -> Any:
    raise ValueError(constant)
