"""The output parser: the same events however the text is cut, no markup in them, and calls as they were meant.

The cases are faults that users of other engines reported, and what the published markup allows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from longsight.chat.events import Arguments, CallStart, Event, Message
from longsight.chat.parser import OutputParser, Start
from longsight.model.markup import DOCUMENT, END_OF_TURN, END_THINK, NAMESPACE, THINK, TURN

NS = NAMESPACE
TOOLS: dict[str, Any] = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "metric": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "place": {"$ref": "#/$defs/place"},
            "when": {"anyOf": [{"type": "number"}, {"type": "string"}]},
            "extra": {"type": "object", "additionalProperties": {"type": "integer"}},
        },
        "$defs": {
            "place": {
                "type": "object",
                "properties": {"lat": {"type": "number"}, "names": {"type": "array", "items": {"type": "string"}}},
            }
        },
    }
}


def call(name: str, body: str) -> str:
    return f'{NS}<invoke name="{name}">{body}{NS}</invoke>\n'


def block(*calls: str) -> str:
    return f"{NS}<tool_call>\n" + "".join(calls) + f"{NS}</tool_call>"


def arg(name: str, value: str) -> str:
    return f"{NS}<{name}>{value}{NS}</{name}>"


def parse(pieces: Sequence[str], start: Start = "undecided", **options: Any) -> list[Event]:
    parser = OutputParser(start, options.pop("tools", TOOLS), **options)
    return [event for piece in pieces for event in parser.push(piece)] + parser.finish()


def message(text: str, start: Start = "undecided", **options: Any) -> Message:
    return Message.of(parse([text], start, **options))


def shape(m: Message) -> tuple[str, str, list[tuple[str, Any]]]:
    return m.reasoning, m.content, [(c.name, json.loads(c.arguments)) for c in m.calls]


HELLO = call("weather", arg("city", "Paris"))
PARIS = ("weather", {"city": "Paris"})
ITEMS = arg("item", "a") + arg("item", "b")
CASES: list[tuple[str, Start, str, tuple[str, str, list[tuple[str, Any]]]]] = [
    ("content only", "undecided", "Hello there", ("", "Hello there", [])),
    ("leading newlines", "undecided", "\n\nHello", ("", "Hello", [])),
    ("thinks, then speaks", "undecided", f"{THINK}hm\n{END_THINK}\n\nYes.", ("hm", "Yes.", [])),
    ("closer first", "undecided", f"\n{END_THINK}Yes.", ("", "Yes.", [])),
    ("prefilled opener", "reasoning", f"hm{END_THINK}Yes.", ("hm", "Yes.", [])),
    ("opener repeated", "reasoning", f"{THINK}h{THINK}m{END_THINK}Yes.", ("hm", "Yes.", [])),
    ("prefilled closer", "content", f"{END_THINK}Yes.", ("", "Yes.", [])),
    ("stray closers", "undecided", f"{THINK}hm{END_THINK}Y{END_THINK}es{END_THINK}.", ("hm", "Yes.", [])),
    ("never closed", "reasoning", "hm, well\n", ("hm, well", "", [])),
    ("call inside reasoning", "reasoning", "hm\n" + block(HELLO), ("hm", "", [PARIS])),
    ("text and a call", "content", "Look:\n" + block(HELLO), ("", "Look:\n", [PARIS])),
    ("two calls", "content", block(HELLO, call("other", "")), ("", "", [PARIS, ("other", {})])),
    ("two blocks", "content", "a" + block(HELLO) + "b" + block(HELLO) + "c", ("", "ab", [PARIS, PARIS])),
    ("end of turn", "content", block(HELLO) + f"{END_OF_TURN}\n{TURN}user\nhi", ("", "", [PARIS])),
    ("end within text", "content", f"Hi{END_OF_TURN}you", ("", "Hi", [])),
    (
        "types by schema",
        "content",
        block(call("weather", arg("days", "3") + arg("metric", "true") + arg("when", "1.5") + arg("city", "42"))),
        ("", "", [("weather", {"days": 3, "metric": True, "when": 1.5, "city": "42"})]),
    ),
    (
        "what fits no type is text",
        "content",
        block(call("weather", arg("days", "a few"))),
        ("", "", [("weather", {"days": "a few"})]),
    ),
    ("no schema, text", "content", block(call("f", arg("x", "3"))), ("", "", [("f", {"x": "3"})])),
    ("array", "content", block(call("weather", arg("tags", ITEMS))), ("", "", [("weather", {"tags": ["a", "b"]})])),
    ("array by its items", "content", block(call("f", arg("x", ITEMS))), ("", "", [("f", {"x": ["a", "b"]})])),
    (
        "array as JSON",
        "content",
        block(call("weather", arg("tags", '["a", "b"]'))),
        ("", "", [("weather", {"tags": ["a", "b"]})]),
    ),
    (
        "array as one text",
        "content",
        block(call("weather", arg("tags", "a"))),
        ("", "", [("weather", {"tags": ["a"]})]),
    ),
    (
        "array repeated",
        "content",
        block(call("weather", arg("tags", arg("item", "a")) + arg("tags", arg("item", "b")) + arg("days", "1"))),
        ("", "", [("weather", {"tags": ["a", "b"], "days": 1})]),
    ),
    (
        "empty array and object",
        "content",
        block(call("weather", arg("tags", "") + arg("extra", ""))),
        ("", "", [("weather", {"tags": [], "extra": {}})]),
    ),
    (
        "nested",
        "content",
        block(call("weather", arg("place", arg("lat", "1.5") + arg("names", arg("item", "x"))))),
        ("", "", [("weather", {"place": {"lat": 1.5, "names": ["x"]}})]),
    ),
    (
        "other properties",
        "content",
        block(call("weather", arg("extra", arg("a", "1") + arg("b", "2")))),
        ("", "", [("weather", {"extra": {"a": 1, "b": 2}})]),
    ),
    (
        "the first of a name",
        "content",
        block(call("weather", arg("city", "a") + arg("city", "b"))),
        ("", "", [("weather", {"city": "a"})]),
    ),
    (
        "inner space is kept",
        "content",
        block(call("weather", arg("city", "  New\n York "))),
        ("", "", [("weather", {"city": "  New\n York "})]),
    ),
    (
        "XML in a string",
        "content",
        block(call("weather", arg("city", "<a><item>x</item></a> <tool_call>"))),
        ("", "", [("weather", {"city": "<a><item>x</item></a> <tool_call>"})]),
    ),
    (
        "plain XML in text",
        "content",
        "<tool_call><invoke name='x'></invoke></tool_call>",
        ("", "<tool_call><invoke name='x'></invoke></tool_call>", []),
    ),
    (
        "quotes",
        "content",
        block(f"{NS}<invoke name='weather'>{NS}</invoke>", f"{NS}<invoke name=weather>{NS}</invoke>"),
        ("", "", [("weather", {}), ("weather", {})]),
    ),
    (
        "spaces around tags",
        "content",
        f'{NS} <tool_call>\n\n {NS}\n< invoke  name = "weather" >\n{NS} <city >x{NS} </ city>\n'
        f"{NS}</invoke>{NS}</tool_call>",
        ("", "", [("weather", {"city": "x"})]),
    ),
    ("false start", "content", f"a {NS}b {NS}<p>c", ("", "a b <p>c", [])),
    ("false start, then a call", "content", f"a{NS} b" + block(HELLO), ("", "a b", [PARIS])),
    (
        "opening tag lost",
        "content",
        block(call("weather", f"Paris{NS}</city>" + arg("days", "2")) + HELLO),
        ("", "", [("weather", {"days": 2}), PARIS]),
    ),
    (
        "argument not closed",
        "content",
        block(call("weather", f"{NS}<days>2" + arg("city", "x"))),
        ("", "", [("weather", {"days": 2, "city": "x"})]),
    ),
    (
        "string not closed",
        "content",
        block(call("weather", f"{NS}<city>x" + arg("days", "2")), HELLO),
        ("", "", [("weather", {"city": "x", "days": 2}), PARIS]),
    ),
    (
        "call not closed",
        "content",
        f'{NS}<tool_call>{NS}<invoke name="weather">{arg("city", "x")}{NS}</tool_call>',
        ("", "", [("weather", {"city": "x"})]),
    ),
    (
        "call closed by the next",
        "content",
        f'{NS}<tool_call>{NS}<invoke name="weather">{arg("city", "x")}' + HELLO + f"{NS}</tool_call>",
        ("", "", [("weather", {"city": "x"}), PARIS]),
    ),
    (
        "closing tag without its marker",
        "content",
        block(call("weather", f"{NS}<city>x</city>\n{NS}<days>3</days>")),
        ("", "", [("weather", {"city": "x", "days": 3})]),
    ),
    (
        "tags without their markers",
        "content",
        f'{NS}<tool_call>\n<invoke name="weather">\n<days>3</days>\n</invoke>\n</tool_call>',
        ("", "", [("weather", {"days": 3})]),
    ),
    ("a call without a block", "content", "x" + HELLO, ("", "x", [PARIS])),
    ("a closing tag out of place", "content", f"a{NS}</tool_call>b{NS}</invoke>c", ("", "abc", [])),
    ("no name", "content", block(f"{NS}<invoke>{arg('city', 'x')}{NS}</invoke>", HELLO), ("", "", [PARIS])),
    (
        "cut off in a call",
        "content",
        block(HELLO)[:-20] + call("weather", arg("city", "Rome"))[:-20],
        ("", "", [PARIS]),
    ),
    ("cut off in a tag", "content", f"hi{NS}<tool_c", ("", "hi", [])),
    ("almost a marker", "content", "a ]<]mini", ("", "a ]<]mini", [])),
    ("almost a closer", "reasoning", "x </mm:th", ("x </mm:th", "", [])),
]
IDS = [name for name, *_ in CASES]


@pytest.mark.parametrize(("_name", "start", "text", "want"), CASES, ids=IDS)
def test_cases(_name: str, start: Start, text: str, want: tuple[str, str, list[Any]]) -> None:
    assert shape(message(text, start)) == want


@pytest.mark.parametrize(("_name", "start", "text", "want"), CASES, ids=IDS)
def test_every_cut_gives_the_same(_name: str, start: Start, text: str, want: object) -> None:
    whole = message(text, start)
    for cut in range(len(text) + 1):
        assert Message.of(parse([text[:cut], text[cut:]], start)) == whole, text[:cut]
    assert Message.of(parse(list(text), start)) == whole


@pytest.mark.parametrize(("_name", "start", "text", "_want"), CASES, ids=IDS)
def test_every_truncation_is_a_beginning(_name: str, start: Start, text: str, _want: object) -> None:
    """Text shown is never taken back, JSON sent is never rewritten, and what is complete stays complete."""
    for cut in range(len(text)):
        short = parse([text[:cut]], start)
        parser = OutputParser(start, TOOLS)
        streamed = parser.push(text[:cut])
        both = Message.of(streamed + parser.push(text[cut:]) + parser.finish())
        assert both == message(text, start)
        for shown in Message.of(short).calls:
            json.loads(shown.arguments)


MARKS = (NS, THINK, END_THINK, TURN, END_OF_TURN, DOCUMENT)
TAGS = ("<tool_call>", "</tool_call>", '<invoke name="weather">', "</invoke>", "<city>", "</city>", "<tags>", "</tags>")
BITS = (*'<>/]\n x"\\3\u65e5\U0001f600', "]<", "true", "<a b='c'>", "<item>", "</item>", "<days>", "</days>", "<place>")
PIECES = st.sampled_from([*MARKS, *TAGS, *(NS + tag for tag in TAGS), *BITS, "</place>"])


@given(
    st.lists(PIECES, max_size=40).map("".join),
    st.sampled_from(["reasoning", "content", "undecided"]),
    st.integers(0, 2**32),
    st.booleans(),
)
@settings(deadline=None, max_examples=600)
@example(f'{NS}<tool_call>{NS}<invoke name="weather">{NS}<city></city>', "content", 1, True)
def test_any_text_in_any_pieces(text: str, start: Start, seed: int, calls: bool) -> None:
    rng, pieces, at = random.Random(seed), list[str](), 0
    while at < len(text):
        step = rng.randint(1, rng.choice([2, 5, 30]))
        pieces.append(text[at : at + step])
        at += step
    whole = parse([text], start, calls=calls)
    assert Message.of(parse(pieces, start, calls=calls)) == Message.of(whole)
    found = Message.of(whole)
    for shown in (found.reasoning, found.content):
        # Markers are removed; a text that comes together again across a removed one is the model's own spelling.
        assert not any(
            m in shown and m in text and text.count(m) == 1 and THINK + m not in text for m in (TURN, DOCUMENT)
        )
    for c in found.calls:
        assert isinstance(json.loads(c.arguments), dict)
        assert NS not in c.arguments
    assert calls or not found.calls


NAMES = st.sampled_from(["city", "q", "path", "a-b", "x.y", "item1"])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(
    lambda s: not any(m in s for m in (NS, TURN, END_OF_TURN, DOCUMENT)) and "</" not in s
)


SCHEMAS: Any = st.recursive(
    st.sampled_from([{"type": "string"}, {"type": "integer"}, {"type": "boolean"}, {"type": "number"}]),
    lambda inner: st.one_of(
        st.builds(lambda i: {"type": "array", "items": i}, inner),
        st.builds(lambda p: {"type": "object", "properties": p}, st.dictionaries(NAMES, inner, max_size=3)),
    ),
    max_leaves=6,
)


def value_of(schema: Any) -> Any:
    match schema["type"]:
        case "string":
            return TEXT
        case "integer":
            return st.integers(-(10**12), 10**12)
        case "boolean":
            return st.booleans()
        case "number":
            return st.floats(allow_nan=False, allow_infinity=False)
        case "array":
            return st.lists(value_of(schema["items"]), max_size=3)
    return st.fixed_dictionaries({}, optional={k: value_of(v) for k, v in schema["properties"].items()})


def render(value: Any) -> str:
    """As the published template writes arguments."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "".join(arg(k, render(v)) for k, v in value.items())
    if isinstance(value, list):
        return "".join(arg("item", render(v)) for v in value)
    return str(value)


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_what_is_rendered_is_read_back(data: st.DataObject) -> None:
    schema = {"type": "object", "properties": data.draw(st.dictionaries(NAMES, SCHEMAS, min_size=1, max_size=4))}
    arguments = data.draw(value_of(schema))
    text = block(call("f", render(arguments)))
    ((name, found),) = shape(message(text, "content", tools={"f": schema}))[2]
    assert (name, found) == ("f", arguments)
    assert list(found) == list(arguments)


def test_a_long_string_streams() -> None:
    parser = OutputParser("content", TOOLS)
    parser.push(f'{NS}<tool_call>{NS}<invoke name="weather">{NS}<city>')
    sent = sum(len(e.json) for i in range(500) for e in parser.push(f'line {i} "x"\n') if isinstance(e, Arguments))
    assert sent > 6000
    events = parser.push(f"{NS}</city>{NS}</invoke>{NS}</tool_call>") + parser.finish()
    assert sum(len(e.json) for e in events if isinstance(e, Arguments)) < 60


def test_the_name_comes_before_the_arguments() -> None:
    events = OutputParser("content", TOOLS).push(f'{NS}<tool_call>{NS}<invoke name="weather">')
    assert events == [CallStart(0, "weather"), Arguments(0, "{")]


LOST: list[tuple[str, Start, str, tuple[str, str, list[Any]], bool]] = [
    ("sixteen closers", "content", f"a{END_THINK * 16}b", ("", "a", []), True),
    ("fifteen closers", "content", f"a{END_THINK * 15}b", ("", "ab", []), False),
    ("closers with words between", "content", f"a{END_THINK}b" * 30, ("", "ab" * 30, []), False),
    ("markers without a tag", "content", f"a{NS * 16}b", ("", "a", []), True),
    ("markers and lines", "reasoning", f"a{(NS + chr(10)) * 16}b", ("a", "", []), True),
    ("closing tags", "content", f"a{(NS + '</tool_call>') * 16}b", ("", "a", []), True),
    ("empty blocks", "content", f"{NS}<tool_call>{NS}</tool_call>" * 9 + HELLO, ("", "", []), True),
    ("many calls", "content", block(HELLO * 20), ("", "", [PARIS] * 20), False),
    ("a large call", "content", block(call("f", arg("a", "1") * 40)), ("", "", [("f", {"a": "1"})]), False),
    ("white space", "content", f"a{' ' * 512}b", ("", f"a{' ' * 512}", []), True),
    ("a little less of it", "content", f"a{' ' * 511}b", ("", f"a{' ' * 511}b", []), False),
    ("lines", "undecided", chr(10) * 600 + "b", ("", "", []), True),
    ("the end of the turn", "content", f"a{TURN}user b", ("", "a", []), True),
]


@pytest.mark.parametrize(("_name", "start", "text", "want", "ended"), LOST, ids=[name for name, *_ in LOST])
def test_a_model_that_is_lost_comes_to_an_end(
    _name: str, start: Start, text: str, want: tuple[str, str, list[Any]], ended: bool
) -> None:
    for pieces in ([text], list(text), [text[:7], text[7:100], text[100:]]):
        parser = OutputParser(start, TOOLS)
        events = [e for piece in pieces for e in parser.push(piece)]
        assert parser.ended == ended
        assert shape(Message.of(events + parser.finish())) == want


def test_what_a_grammar_writes_may_hold_any_white_space() -> None:
    text = f"a{' ' * 600}b"
    assert shape(message(text, "content", forgiving=False)) == ("", text, [])


def test_undeclared_tools_leave_no_trace() -> None:
    assert shape(message("a" + block(HELLO), "content", calls=False)) == ("", "a", [])
    parser = OutputParser("content", calls=False)
    parser.push("a" + block(HELLO)[:30])
    assert parser.ended  # nothing after it would be seen


def test_too_deep_or_too_large_a_call_is_lost_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = "".join(f"{NS}<a>" for _ in range(200)) + "".join(f"{NS}</a>" for _ in range(200))
    assert shape(message(block(call("f", deep), HELLO), "content"))[2] == [PARIS]
    monkeypatch.setattr("longsight.chat.calls.MAX_ARGUMENTS", 1000)
    large = block(call("weather", arg("city", "x" * 1001)), HELLO)
    assert shape(message(large, "content"))[2] == [PARIS]


HOSTILE: list[Any] = [
    *(None, 5, "x", [], {"type": 7}, {"properties": []}, {"properties": {"city": 3}}, {"$ref": "#/x"}, {"$ref": "#"}),
    {"properties": {"city": {"anyOf": "x", "type": ["string", 3]}}},
    {"properties": {"city": {"$ref": "#/properties/city"}}},
    {"anyOf": [{"anyOf": [{"anyOf": [{"anyOf": [{}]}]}]}]},
    {"properties": {"city": {"enum": [1, "1", None]}}},
]


@pytest.mark.parametrize("schema", HOSTILE, ids=repr)
def test_schemas_are_other_peoples_text(schema: Any) -> None:
    text = block(call("f", arg("city", "1") + arg("x", arg("city", "2"))))
    ((_, arguments),) = shape(message(text, "content", tools={"f": schema}))[2]
    assert str(arguments["city"]) == "1"
