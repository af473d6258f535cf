"""Texts of values as terminals of a grammar: each a Lark expression that ends with the namespace marker.

A value's text holds no marker that would end it, and reads back as the type it was written as.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from longsight.model.markup import DOCUMENT, END_OF_TURN, END_THINK, NAMESPACE, THINK, TURN

NS = json.dumps(NAMESPACE)
EXACT_LENGTH = 32  # bounds up to this are counted beside the search for markers, which costs a state for each of both
MAX_LENGTH = 5000  # larger ones are not held to
MAX_PATTERN = 500
_ENDS = (TURN, END_OF_TURN, DOCUMENT)
_SPACE = r"[\s\x1c-\x1f]*"  # what Python strips
# What another type would take for its own: llguidance's expressions, of the whole text.
_READS_AS = {
    "integer": rf"{_SPACE}[+-]*\p{{Nd}}+{_SPACE}",
    "number": rf"{_SPACE}[+-]*[\p{{Nd}}.][\p{{Nd}}.eE+-]*{_SPACE}",
    "boolean": rf"{_SPACE}(?i:true|false){_SPACE}",
    "null": rf"{_SPACE}(null|None){_SPACE}",
    "array": rf"{_SPACE}(\[(?s:.*)\]{_SPACE})?",
    "object": rf"{_SPACE}(\{{(?s:.*)\}}{_SPACE})?",
}
INTEGER = "-?(0|[1-9][0-9]{0,17})"
NUMBER = r"-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,16})?([eE][+-]?[0-9]{1,2})?"


def holding(*markers: str) -> str:
    """Any text with one of `markers` in it."""
    return "/(?s:.*)(" + "|".join(re.escape(m).replace("/", "\\/") for m in markers) + ")(?s:.*)/"


def _up_to_marker(*limits: str) -> str:
    """A text that fits all of these expressions, and the marker. The whole is searched for ends of turns: the text's
    last characters and the marker after it must not make one."""
    text = " & ".join(["/(?s:.*)/", f"~{holding(NAMESPACE)}", *limits])
    return f"(({text}) {NS}) & ~{holding(*_ENDS)}"


FREE = _up_to_marker()
CONTENT = f"/(?s:.+)/ & ~{holding(NAMESPACE, THINK, END_THINK, *_ENDS)}"
CONTENT_TO_CALL = _up_to_marker(f"~{holding(THINK, END_THINK)}")
REASONING = f"(/(?s:.*)/ & ~{holding(NAMESPACE, END_THINK, *_ENDS)}) {json.dumps(END_THINK)}"
TAG = r"/[^\s<>\/=]{1,512}/ & ~/invoke|tool_call/"
NO_MARKER = holding(NAMESPACE, *_ENDS)


def writable(text: str) -> bool:
    """Whether a value may be just this text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    whole = text + NAMESPACE
    return whole.index(NAMESPACE) == len(text) and not any(marker in whole for marker in _ENDS)


def one_of(texts: Collection[str]) -> str:
    return "(" + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts) + f") {NS}"


def plain(expression: str) -> str:
    return f"/{expression}/ {NS}"


def string(schema: Any, others: Collection[str]) -> str:
    """A string of `schema` (minLength, maxLength, a simple pattern) that is not read as one of the types `others`."""
    low, high = _bound(schema.get("minLength"), 0), _bound(schema.get("maxLength"), None)
    pattern = simple_pattern(schema.get("pattern"))
    limits = [f"~/{_READS_AS[kind]}/" for kind in others if kind in _READS_AS]
    if pattern is not None:
        limits.append(f"/{pattern}/")
    if max(low or 0, high or 0) <= EXACT_LENGTH:
        if low or high is not None:
            limits.append(f"/(?s:.{{{low},{'' if high is None else high}}})/")
    elif pattern is None and not others:
        # No marker can begin in what must be there, and the rest ends at the first one: no search while counting.
        low, high = min(low or 0, MAX_LENGTH), None if high is None or high > MAX_LENGTH else high
        rest = "*" if high is None else f"{{0,{max(high - low, 0)}}}"
        return rf"/[^\[\]]{{{low}}}(?s:.{rest})/ {NS}"
    return _up_to_marker(*limits)


def _bound(value: object, otherwise: int | None) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else otherwise


_SHORTHAND = {"d": "0-9", "w": "A-Za-z0-9_", "s": r" \t\n\r\f\v"}
_PIECE = re.compile(r"\\[dws.\-+*?()\[\]{}|/\\^$@]|\(\?:|[^\\]", re.DOTALL)


def simple_pattern(pattern: object) -> str | None:
    """An ECMA expression, searched for, as one that llguidance matches with the whole text; None if it is not simple:
    no look-around, references or classes beyond \\d \\w \\s, no large counts, anchors at its ends only."""
    if not isinstance(pattern, str) or not pattern.isascii() or len(pattern) > MAX_PATTERN or "\n" in pattern:
        return None
    from_start, to_end = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    body = pattern[from_start : len(pattern) - to_end]
    pieces = _PIECE.findall(body)
    if "".join(pieces) != body:
        return None
    out, in_class, depth = "", False, 0
    for i, piece in enumerate(pieces):
        if len(piece) == 2 and piece[0] == "\\" and piece[1] in _SHORTHAND:
            out += _SHORTHAND[piece[1]] if in_class else f"[{_SHORTHAND[piece[1]]}]"
            continue
        if not in_class:
            before = pieces[i - 1] if i else ""
            if piece in "^$" or (piece == "?" and before == "("):
                return None
            depth += (piece in ("(", "(?:")) - (piece == ")")
            if piece == "|" and depth == 0 and (from_start or to_end):
                return None
        elif piece in "[&~":
            return None
        if piece in "[]":
            in_class = piece == "["
        out += "\\/" if piece in ("/", "\\/") else piece
    if re.search(r"[0-9]{3,}\}|\{[0-9]{3,}", out):
        return None
    try:
        re.compile(out)
    except (re.error, RecursionError, OverflowError):
        return None
    return ("" if from_start else "(?s:.*)") + f"({out})" + ("" if to_end else "(?s:.*)")
