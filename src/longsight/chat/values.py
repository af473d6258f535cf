"""From a tool's schema to grammar rules for its arguments, in the markup that calls.py reads.

What may be written is what reads back as a value of the schema: each place is known by its schema and by the `Typed`
through which the parser reads it, which differ where alternatives share a name. The marker before an element's closing
tag belongs to the value's rule, so that a text and its end are one lexeme.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from longsight.chat import texts
from longsight.chat.errors import SchemaError, pointer_to
from longsight.chat.json_text import open_object
from longsight.chat.lark import Rules, Symbol, literal
from longsight.chat.merging import Alternative, Merger
from longsight.chat.schema import Typed, kinds

MAX_COUNT = 256  # larger minItems are refused, larger maxItems not held to
MAX_OPTIONAL = 400  # optional properties of one object: the parser looks at all of them at once
MAX_ENUM = 20_000
_NAME = re.compile(r"[^\s<>/=]{1,500}")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_LIMIT = 10**18  # numbers of more digits than Python reads would come back as text


class _Place(NamedTuple):
    rule: Symbol
    schema: Mapping[str, Any]
    typed: Typed
    pointer: str


class ArgumentRules:
    """Rules for the arguments of one tool. Each place of its schema is handled once, however it is referred to."""

    def __init__(self, rules: Rules, tool: str, schema: object) -> None:
        self._rules, self._tool = rules, tool
        self._root = schema
        self._merger = Merger(schema, tool)
        self._places: dict[tuple[int, int], Symbol] = {}
        self._waiting: deque[_Place] = deque()
        self._keep: list[object] = []  # what is known by its id must live on
        self._ns = rules.terminal(texts.NS)
        self._any = rules.terminal(texts.FREE, lazy=True)

    def bodies(self) -> list[list[Symbol]]:
        """Alternatives for all elements of a call, each with its closing marker; never none at all."""
        typed = Typed(self._root, self._root)
        found: list[list[Symbol]] = []
        for schema, pointer in self._merger.alternatives(typed.schema, ""):
            if "object" in (kinds(schema) or ["object"]):
                found.append(self._elements(schema, typed, pointer))
        while self._waiting:
            place = self._waiting.popleft()
            self._rules.define(place.rule, self._value(place))
        return found

    def _place(self, schema: object, typed: Typed, pointer: str) -> Symbol:
        if schema is False:
            return self._rules.reserve(pointer, self._tool)
        resolved = Typed(schema, self._root).schema
        key = id(resolved), id(typed.schema)
        if key not in self._places:
            self._keep += [resolved, typed.schema]
            self._places[key] = self._rules.reserve(pointer, self._tool)
            self._waiting.append(_Place(self._places[key], resolved, typed, pointer))
        return self._places[key]

    def _elements(self, schema: Mapping[str, Any], typed: Typed, pointer: str) -> list[Symbol]:
        """The elements of an object's properties: the required ones must come, all in the schema's order."""
        given, must = schema.get("properties"), schema.get("required")
        properties = given if isinstance(given, Mapping) else {}
        required = {name for name in must if isinstance(name, str)} if isinstance(must, list | tuple) else set()
        if len(properties) - len(required) > MAX_OPTIONAL:
            raise SchemaError(f"more than {MAX_OPTIONAL} properties are optional", pointer, self._tool)
        others = schema.get("additionalProperties", {})
        found: list[Symbol] = []
        for name in [*properties, *(n for n in sorted(required) if n not in properties)]:
            where = pointer_to(pointer, "properties", name)
            if not _NAME.fullmatch(name) or name in ("tool_call", "invoke") or not texts.writable(name):
                if name in required:
                    raise SchemaError(
                        f"the required property {name!r:.80} cannot be the name of an element: that has 1 to 500 "
                        "characters, none of them white space or one of < > / =, and no marker of the model's",
                        where,
                        self._tool,
                    )
                continue
            value = self._place(properties.get(name, others), typed.property(name), where)
            element = self._rules.rule([literal(f"<{name}>"), value, literal(f"</{name}>"), self._ns])
            found.append(element if name in required else Symbol(element.text, "?", needed=False))
        return found

    def _value(self, place: _Place) -> list[list[Symbol]]:
        typed, read = place.typed, place.typed.types
        alternatives = self._merger.alternatives(place.schema, place.pointer)
        found: list[list[Symbol]] = []
        text_too = "string" in read and any("string" in kinds(s) for s, _ in alternatives)
        for alternative in alternatives:
            schema = alternative.schema
            if "enum" in schema or "const" in schema:
                found += self._enumerated(alternative, typed)
                continue
            for kind in kinds(schema):
                found += self._of_kind(kind, alternative, typed, read, alternatives, beside_text=text_too)
            if not kinds(schema):
                found.append([self._any])
        return found

    def _of_kind(
        self,
        kind: str,
        alternative: Alternative,
        typed: Typed,
        read: list[str],
        alternatives: list[Alternative],
        *,
        beside_text: bool,
    ) -> list[list[Symbol]]:
        """Bodies for one type of an alternative; none if the parser would read another type there."""
        schema, pointer = alternative
        if kind == "string" and (not read or "string" in read):
            others = [k for k in read if k != "string" and not _takes_all(k, alternatives)]
            body = texts.string(schema, others)
            if "pattern" in schema and not self._rules.usable(body, pointer, self._tool):
                body = texts.string({k: v for k, v in schema.items() if k != "pattern"}, others)
            return [[self._rules.terminal(body, lazy=True)]]
        if kind in ("integer", "number") and (kind in read or (kind == "integer" and "number" in read)):
            bounds = {key: schema[key] for key in _BOUNDS if key in schema and _is_number(schema[key])}
            if not bounds:
                return [[self._rules.terminal(texts.plain(texts.INTEGER if kind == "integer" else texts.NUMBER))]]
            # Beside a string a number must be one lexeme with its marker, and a range is none.
            found = None if beside_text else self._range(kind, bounds, pointer)
            return [] if found is None else [[found, self._ns]]
        if kind == "boolean" and kind in read:
            return [[self._rules.terminal(texts.one_of(("true", "false")))]]
        if kind == "null" and kind in read:
            return [[self._rules.terminal(texts.one_of(("null",)))]]
        if kind == "array" and kind in read:
            return self._array(alternative, typed, read)
        if kind == "object" and kind in read:
            return self._object(alternative, typed, read)
        return []

    def _range(self, kind: str, bounds: dict[str, Any], pointer: str) -> Symbol | None:
        """A number within bounds; None if there is none."""
        if "maximum" not in bounds and "exclusiveMaximum" not in bounds:
            bounds["maximum"] = _LIMIT
        if "minimum" not in bounds and "exclusiveMinimum" not in bounds:
            bounds["minimum"] = -_LIMIT
        body = "%json " + json.dumps({"type": kind, **bounds})
        return self._rules.rule([Symbol(body)]) if self._rules.usable(body, pointer, self._tool) else None

    def _array(self, alternative: Alternative, typed: Typed, read: list[str]) -> list[list[Symbol]]:
        schema, pointer = alternative
        low, high = _count(schema.get("minItems")) or 0, _count(schema.get("maxItems"))
        if low > MAX_COUNT:
            raise SchemaError(
                f"minItems is {low}; at most {MAX_COUNT} are held to", pointer_to(pointer, "minItems"), self._tool
            )
        if not typed.is_array or high == 0 or schema.get("items") is False:
            # Where an object may stand too, only an empty array reads back as one.
            return [[self._ns]] if low == 0 and _empty_is("array", read) else []
        value = self._place(schema.get("items", {}), typed.item(), pointer_to(pointer, "items"))
        item = self._rules.rule([literal("<item>"), value, literal("</item>"), self._ns])
        most = "" if high is None or high > MAX_COUNT else str(high)
        return [[self._ns, Symbol(item.text, f"{{{low},{most}}}", needed=low > 0)]]

    def _object(self, alternative: Alternative, typed: Typed, read: list[str]) -> list[list[Symbol]]:
        schema, pointer = alternative
        if schema.get("properties") or schema.get("required"):
            elements = self._elements(schema, typed, pointer)
            if _empty_is("object", read) or any(symbol.needed for symbol in elements):
                return [[self._ns, *elements]]
            return []
        least = _count(schema.get("minProperties")) or 0
        values = False if "patternProperties" in schema else schema.get("additionalProperties")
        found = open_object(self._rules, values, empty=least == 0)
        if found is not None:
            return [[found, self._ns]]
        return [[self._ns]] if least == 0 and _empty_is("object", read) else []

    def _enumerated(self, alternative: Alternative, typed: Typed) -> list[list[Symbol]]:
        """The values that are allowed, each as a text that reads back as itself."""
        schema, pointer = alternative
        enum = schema.get("enum")
        allowed = enum if isinstance(enum, list | tuple) else [schema.get("const")]
        if "const" in schema and isinstance(enum, list | tuple):
            allowed = [v for v in enum if _same(v, schema["const"])]
        if len(allowed) > MAX_ENUM:
            raise SchemaError(
                f"enum has {len(allowed)} values; at most {MAX_ENUM} are taken", pointer_to(pointer, "enum"), self._tool
            )
        spelled: dict[str, None] = {}
        typed_read, verbatim = typed.types, typed.is_string
        known = {json.dumps(v): v for v in reversed(typed.choices()) if not isinstance(v, str)}
        named = kinds(schema)
        for value in allowed:
            if named and not any(_is_of(value, kind) for kind in named):
                continue
            text = value if isinstance(value, str) else json.dumps(value)
            if verbatim:
                back: Any = text
            elif typed_read:
                back = typed.read(text)
            else:
                back = known.get(text.strip(), text)  # as `typed` does, which looks through all of them each time
            if texts.writable(text) and _same(back, value):
                spelled[text] = None
        return [[self._rules.terminal(texts.one_of(spelled))]] if spelled else []


def _empty_is(kind: str, read: list[str]) -> bool:
    """Whether an element without text or children is read as `kind`, array or object."""
    return next((k for k in read if k in ("array", "object")), None) == kind


def _takes_all(kind: str, alternatives: list[Alternative]) -> bool:
    """Whether every value of a type is allowed, so that a text that is read as one does no harm."""
    names = {"title", "description", "default", "examples", "type", "deprecated", "readOnly", "writeOnly", "$comment"}
    named = [schema for schema, _ in alternatives if kind in kinds(schema)]
    return any(kind == "null" or set(schema) <= names for schema in named)


def _count(value: object) -> int | None:
    """A number of items or properties, or None for what is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LIMIT


def _is_of(value: object, kind: str) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
        case "integer":
            return not isinstance(value, bool) and (
                isinstance(value, int) or (isinstance(value, float) and value.is_integer())
            )
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
    return False


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
