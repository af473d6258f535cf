"""A schema's alternatives, each as one plain schema: anyOf, oneOf and allOf spread out over what stands beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from longsight.chat.errors import SchemaError, pointer_to
from longsight.chat.schema import Schema, Typed

MAX_ALTERNATIVES = 256
MAX_LEVELS = 8
_SPREAD = ("allOf", "anyOf", "oneOf")
_ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "$comment", "$defs", "definitions"}


class Alternative(NamedTuple):
    schema: Schema
    pointer: str


class Merger:
    """Spreads out the schemas of one document."""

    def __init__(self, root: object, tool: str | None) -> None:
        self._root, self._tool = root, tool
        self._merged: dict[tuple[int, int], tuple[Any, Any, Schema]] = {}

    def alternatives(self, schema: Schema, pointer: str) -> list[Alternative]:
        """`oneOf` as `anyOf`. SchemaError if there are too many of them."""
        found = [Alternative(schema, pointer)]
        for _ in range(MAX_LEVELS):
            if not any(key in s for s, _ in found for key in _SPREAD):
                break
            found = [inner for alternative in found for inner in self._spread(alternative)]
            if len(found) > MAX_ALTERNATIVES:
                raise SchemaError(f"there are more than {MAX_ALTERNATIVES} alternatives", pointer, self._tool)
        return [a for a in found if not any(key in a.schema for key in _SPREAD)]

    def _spread(self, alternative: Alternative) -> list[Alternative]:
        """One level of one of the keywords."""
        schema, pointer = alternative
        key = next((k for k in _SPREAD if k in schema), None)
        if key is None:
            return [alternative]
        base: Schema = {k: v for k, v in schema.items() if k != key}
        parts = schema[key]
        if not isinstance(parts, list | tuple) or not parts:
            return [Alternative(base, pointer)]
        if key == "allOf":
            for part in parts:
                base = self.merge(base, part)
            return [Alternative(base, pointer)]
        found = []
        for i, part in enumerate(parts[: MAX_ALTERNATIVES + 1]):
            if part is not False:
                found.append(Alternative(self.merge(base, part), pointer_to(pointer, key, i)))
        return found

    def merge(self, one: object, other: object) -> Schema:
        """What both say; where they contradict each other, `other`."""
        a, b = Typed(one, self._root).schema, Typed(other, self._root).schema
        if set(a) <= _ANNOTATIONS:
            return b
        if set(b) <= _ANNOTATIONS:
            return a
        merged = {**a, **b}
        for key in _SPREAD:
            if key in a and key in b:  # neither may be lost: the second becomes one more of what must hold
                merged[key] = a[key]
                merged["allOf"] = (
                    [*_list(merged.get("allOf")), {key: b[key]}]
                    if key != "allOf"
                    else [
                        *_list(a[key]),
                        *_list(b[key]),
                    ]
                )
        p, q = a.get("properties"), b.get("properties")
        if isinstance(p, Mapping) and isinstance(q, Mapping):
            merged["properties"] = {**p, **{k: self._both(p[k], v) if k in p else v for k, v in q.items()}}
        r, s = a.get("required"), b.get("required")
        if isinstance(r, list | tuple) and isinstance(s, list | tuple):
            merged["required"] = [*r, *s]
        return merged

    def _both(self, one: object, other: object) -> Schema:
        """A property that both describe, merged once however often it is come by."""
        key = id(one), id(other)
        if key not in self._merged:
            self._merged[key] = one, other, {"allOf": [one, other]}
        return self._merged[key][2]


def _list(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
