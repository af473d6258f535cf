"""JSON written as the text of one element, for objects whose keys a schema leaves open."""

from __future__ import annotations

import json

from longsight.chat.lark import Rules, Symbol, literal
from longsight.chat.schema import kinds
from longsight.chat.texts import INTEGER, NO_MARKER, NUMBER

MAX_NESTING = 12
_STRING = rf'/"([^"\\\x00-\x1f\x7f]|\\(["\\\/bfnrt]|u00[0-9a-f]{{2}}))*"/ & ~{NO_MARKER}'
_CONSTRAINTS = ("minLength", "maxLength", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_MORE_CONSTRAINTS = (
    "multipleOf",
    "$ref",
    "anyOf",
    "oneOf",
    "allOf",
    "not",
    "if",
    "minItems",
    "maxItems",
    "uniqueItems",
)


def open_object(rules: Rules, values: object, *, empty: bool) -> Symbol | None:
    """An object of any keys whose values are of the schema `values`; None if those are not of a simple kind.

    empty: whether it may have no keys.
    """
    value = _value(rules, values, MAX_NESTING)
    return None if value is None else _object(rules, value, empty=empty)


def _value(rules: Rules, schema: object, nesting: int) -> Symbol | None:
    if schema is True or schema is None or schema == {}:
        return _anything(rules, nesting)
    if not isinstance(schema, dict) or any(key in schema for key in (*_CONSTRAINTS, *_MORE_CONSTRAINTS)):
        return None
    if "enum" in schema or "const" in schema:
        allowed = schema["enum"] if isinstance(schema.get("enum"), list) else [schema.get("const")]
        texts = [json.dumps(v) for v in allowed]
        return rules.rule(*([literal(t)] for t in texts)) if len(texts) <= 100 and "]<]" not in "".join(texts) else None
    scalar: dict[str, list[Symbol]] = {
        "string": [_string(rules)],
        "integer": [rules.terminal(f"/{INTEGER}/")],
        "number": [rules.terminal(f"/{NUMBER}/")],
        "boolean": [literal("true"), literal("false")],
        "null": [literal("null")],
    }
    found: list[Symbol] = []
    for kind in kinds(schema) or [""]:
        if kind in scalar:
            found += scalar[kind]
        elif kind == "array" and nesting:
            items = _value(rules, schema.get("items"), nesting - 1)
            found += [] if items is None else [_array(rules, items)]
        elif kind == "object" and nesting and not schema.get("properties") and not schema.get("required"):
            inside = _value(rules, schema.get("additionalProperties"), nesting - 1)
            found += [] if inside is None else [_object(rules, inside, empty=True)]
    return rules.rule(*([symbol] for symbol in found)) if found else None


def _anything(rules: Rules, nesting: int) -> Symbol:
    flat = [_string(rules), rules.terminal(f"/{NUMBER}/"), literal("true"), literal("false"), literal("null")]
    value = rules.rule(*([symbol] for symbol in flat))
    for _ in range(nesting):
        deep = [*flat, _array(rules, value), _object(rules, value, empty=True)]
        value = rules.rule(*([symbol] for symbol in deep))
    return value


def _string(rules: Rules) -> Symbol:
    return rules.terminal(_STRING)


def _array(rules: Rules, value: Symbol) -> Symbol:
    more = rules.rule([literal(", "), value])
    return rules.rule([literal("["), literal("]")], [literal("["), value, _some(more), literal("]")])


def _object(rules: Rules, value: Symbol, *, empty: bool) -> Symbol:
    pair = rules.rule([_string(rules), literal(": "), value])
    more = rules.rule([literal(", "), pair])
    nothing = [[literal("{"), literal("}")]] if empty else []
    return rules.rule(*nothing, [literal("{"), pair, _some(more), literal("}")])


def _some(symbol: Symbol) -> Symbol:
    return Symbol(symbol.text, "*", needed=False)
