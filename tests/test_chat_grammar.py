"""Grammars of calls and of JSON: whatever the model would like to say, the parser reads valid arguments back."""

from __future__ import annotations

import contextlib
import json
import random
import re
from collections.abc import Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, Phase, assume, example, given, reject, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from longsight.chat.errors import SchemaError
from longsight.chat.events import Message
from longsight.chat.grammar import format_grammar, tool_grammar
from longsight.chat.parser import OutputParser, Start
from longsight.chat.texts import simple_pattern
from longsight.engine import Grammar, InvalidRequestError
from longsight.engine.grammar import GrammarCompiler
from longsight.model.markup import END_OF_TURN, END_THINK, NAMESPACE, THINK, TURN

NS = NAMESPACE
EOS = 0
STARTS: list[Start] = ["reasoning", "content", "undecided"]


def build(markers: bool) -> tokenizers.Tokenizer:
    """Byte-level BPE with a few merges. markers: M3's namespace and thinking markers are one added token each."""
    t = tokenizers.Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    text = ['<invoke name="f"> </invoke> <tool_call> <item> true false 12 null ]<]minimax[>[ caf\u00e9 {"a": [1]}'] * 9
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=330, initial_alphabet=alphabet, special_tokens=[END_OF_TURN], show_progress=False
        ),
    )
    if markers:
        t.add_tokens([AddedToken(m, special=False, normalized=False) for m in (NS, THINK, END_THINK)])
        t.add_special_tokens([TURN])
    return t


class Model:
    """Says anything that its grammar lets it, with a liking for markers and for ends."""

    def __init__(self, markers: bool) -> None:
        self.tokenizer = build(markers)
        self.compiler = GrammarCompiler(
            self.tokenizer.to_str(), vocab_size=self.tokenizer.get_vocab_size() + 3, eos_token_ids=(EOS,)
        )
        self._phrases = [self.tokenizer.encode(m).ids for m in (NS, END_THINK)]

    def say(self, grammar: Grammar, seed: int, limit: int = 800) -> str | None:
        """An answer; None if it is still going on after `limit` tokens."""
        rng, matcher = random.Random(seed), self.compiler.matcher(grammar)
        tokens, plan = list[int](), list[int]()
        for _ in range(limit):
            allowed = np.flatnonzero(matcher.mask().numpy())
            assert len(allowed), self.decode(tokens)
            if plan and plan[0] not in allowed:
                plan = []
            if not plan and rng.random() < 0.25:
                plan = list(rng.choice(self._phrases))
            token = plan.pop(0) if plan and plan[0] in allowed else int(rng.choice(allowed))
            if token == EOS:
                return self.decode(tokens)
            matcher.accept(token)
            tokens.append(token)
            if matcher.complete:
                return self.decode(tokens)
        return None

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=False))

    def takes(self, grammar: Grammar, text: str, *, ends_early: bool = False) -> bool:
        """Whether `text` is an answer in whole, and ends there and, unless ends_early, nowhere before."""
        matcher, tokens = self.compiler.matcher(grammar), self.tokenizer.encode(text).ids
        for i, token in enumerate(tokens):
            mask = matcher.mask()
            assert ends_early or not mask[EOS], self.decode(tokens[:i])
            if not mask[token]:
                return False
            matcher.accept(token)
        return matcher.complete or bool(matcher.mask()[EOS])


MODELS = {name: Model(name == "added") for name in ("added", "spelled")}


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> Model:
    return MODELS[request.param]


def read(text: str, start: Start, tools: dict[str, Any]) -> Message:
    parser = OutputParser(start, tools, forgiving=False)
    return Message.of([*parser.push(text), *parser.finish()])


def check(text: str, start: Start, tools: dict[str, Any]) -> list[str]:
    """The calls' names, after a look at everything else about the answer."""
    assert text.endswith(f"{NS}</tool_call>")
    found = check_calls(text, start, tools)
    assert found.content == ""
    return [call.name for call in found.calls]


def check_calls(text: str, start: Start, tools: dict[str, Any]) -> Message:
    """All that are in the text are of tools that are declared, and fit their schemas."""
    found = read(text, start, tools)
    assert len(found.calls) == text.count(f"{NS}<invoke name=")
    for call in found.calls:
        jsonschema.validate(json.loads(call.arguments), tools[call.name])
    return found


NAMES = st.sampled_from(["city", "q", "path", "a-b", "x.y", "item", "\u65e5"])
SCALARS = st.sampled_from(
    [
        *({"type": t} for t in ("string", "integer", "number", "boolean", "null")),
        {},
        {"type": "string", "enum": ["a", "b c", "", "12", "\u65e5"]},
        {"enum": [1, "1", "x", None, True, [1, 2]]},
        {"const": 7},
        {"const": "seven"},
        {"type": "string", "minLength": 2, "maxLength": 5},
        {"type": "string", "minLength": 1},
        {"type": "string", "pattern": r"^[a-c]{2}-\d+$"},
        {"type": "string", "pattern": "x"},
        {"type": "integer", "minimum": 3, "maximum": 120},
        {"type": "integer", "exclusiveMinimum": 0},
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": ["string", "null"]},
        {"type": ["integer", "string"], "minimum": 5},
        {"type": ["boolean", "integer"]},
        {"type": "object"},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": "object", "additionalProperties": {"type": "array", "items": {"enum": ["u", 5]}}},
        {"type": "array"},
        {"anyOf": [{"type": "integer", "maximum": 9}, {"type": "string", "maxLength": 4}]},
    ]
)


def deeper(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    counts = st.sampled_from([{}, {"minItems": 1}, {"maxItems": 2}, {"minItems": 2, "maxItems": 3}, {"maxItems": 0}])
    return st.one_of(
        st.builds(lambda i, c: {"type": "array", "items": i, **c}, inner, counts),
        objects(inner),
        st.builds(lambda key, parts: {key: parts}, st.sampled_from(["anyOf"]), st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda o, r: {"allOf": [o, {"required": r}]}, objects(inner), st.lists(NAMES, max_size=1)),
    )


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    properties = draw(st.dictionaries(NAMES, inner, max_size=4))
    required = [name for name in properties if draw(st.booleans())]
    shown: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    return shown | ({"additionalProperties": False} if draw(st.booleans()) else {})


SCHEMAS = objects(st.recursive(SCALARS, deeper, max_leaves=8))
TREE = {
    "type": "object",
    "properties": {"root": {"$ref": "#/$defs/node"}},
    "required": ["root"],
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["v"],
        }
    },
}
SHAPES = {
    "type": "object",
    "properties": {
        "shape": {
            "oneOf": [
                {
                    "type": "object",
                    "properties": {"kind": {"const": "circle"}, "size": {"type": "number"}},
                    "required": ["kind", "size"],
                },
                {
                    "type": "object",
                    "properties": {"kind": {"const": "text"}, "words": {"type": "array", "items": {"type": "string"}}},
                    "required": ["kind", "words"],
                },
            ]
        }
    },
    "required": ["shape"],
}


@pytest.mark.parametrize("form", list(MODELS))
@given(st.lists(SCHEMAS, min_size=1, max_size=3), st.sampled_from(STARTS), st.booleans(), st.integers(0, 2**32))
@settings(
    deadline=None,
    max_examples=50,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@example([TREE, SHAPES], "content", True, 1)
@example([TREE, SHAPES], "undecided", False, 2)
def test_what_is_said_is_read_as_valid_arguments(
    form: str, schemas: list[Any], start: Start, parallel: bool, seed: int
) -> None:
    tools = {f"tool-{i}": schema for i, schema in enumerate(schemas)}
    try:
        grammar = tool_grammar(list(tools.items()), only=None, parallel=parallel, start=start)
    except SchemaError:
        reject()  # an array that needs an element which is nothing, and the like
    text = MODELS[form].say(grammar, seed)
    assume(text is not None)
    names = check(str(text), start, tools)
    assert len(names) == 1 or (parallel and names)


def one(schema: Any, start: Start = "content") -> Grammar:
    return tool_grammar([("f", schema)], only=None, parallel=False, start=start)


def call(name: str, arguments: str) -> str:
    return f'{NS}<invoke name="{name}">{arguments}{NS}</invoke>\n'


def block(*calls: str) -> str:
    return f"{NS}<tool_call>\n" + "".join(calls) + f"{NS}</tool_call>"


def arg(name: str, value: str) -> str:
    return f"{NS}<{name}>{value}{NS}</{name}>"


WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
        "place": {"type": "object", "properties": {"street": {"type": "string"}, "zip": {"type": "integer"}}},
    },
    "required": ["city"],
}
TOOLS = [("weather", WEATHER), ("now", None)]
SCHEMAS_OF = {name: schema or {} for name, schema in TOOLS}
LINES = arg("city", "Alger\n<b>la blanche</b> ]<]mini ]~ [1] </city")
ANSWERS: list[tuple[str, bool]] = [
    (block(call("weather", arg("city", "Oran"))), True),
    (block(call("weather", LINES)), True),
    (block(call("weather", arg("city", ""))), True),
    (block(call("weather", arg("city", "x") + arg("days", ""))), True),
    (block(call("weather", arg("city", "x") + arg("days", arg("item", "1") + arg("item", "-2")))), True),
    (block(call("weather", arg("city", "x") + arg("place", arg("zip", "3")))), True),
    (block(call("now", "")), True),
    (block(call("now", ""), call("weather", arg("city", "x"))), True),
    (block(), False),
    (block(call("weather", "")), False),
    (block(call("later", "")), False),
    (block(call("weather", arg("place", "") + arg("city", "x"))), False),
    (block(call("weather", arg("city", "x") + arg("days", arg("item", "1") * 3))), False),
    (block(call("weather", arg("city", "x") + arg("days", arg("item", "1.5")))), False),
    (block(call("weather", arg("city", "x") + arg("wind", "1"))), False),
    (block(call("weather", arg("city", TURN + " x"))), False),
    ("hello" + block(call("now", "")), False),
    (block(call("now", "")) + "hello", False),
    (block(call("now", "")) + block(call("now", "")), False),
]


@pytest.mark.parametrize(("text", "good"), ANSWERS)
def test_cases(model: Model, text: str, good: bool) -> None:
    assert model.takes(tool_grammar(TOOLS, only=None, parallel=True, start="content"), text) is good
    if good:
        check(text, "content", SCHEMAS_OF)


def test_one_call_or_one_tool(model: Model) -> None:
    now, both = block(call("now", "")), block(call("now", ""), call("weather", arg("city", "x")))
    single = tool_grammar(TOOLS, only=None, parallel=False, start="content")
    named = tool_grammar(TOOLS, only="weather", parallel=True, start="content")
    assert model.takes(single, now)
    assert not model.takes(single, both)
    assert not model.takes(named, now)
    assert model.takes(named, block(call("weather", arg("city", "x")), call("weather", arg("city", "y"))))
    with pytest.raises(SchemaError, match="'weather', 'now'"):
        tool_grammar(TOOLS, only="later", parallel=True, start="content")


CALL = block(call("weather", arg("city", "Oran")))
BAD = call("weather", arg("days", arg("item", "soon")))
OPTIONAL: list[tuple[str, bool]] = [
    ("", True),
    ("It rains.\n", True),
    ("]<]minimax is said of a marker", True),
    (CALL, True),
    ("I look it up.\n" + CALL, True),
    ("a ]<]mini" + CALL, True),
    (CALL + "It rains.", False),
    (NS, False),
    ("a" + block(call("later", "")), False),
    ("a" + block(call("weather", "")), False),
    (block(call("now", arg("zone", "CET") + arg("z", arg("item", "1")))), True),  # not held to a schema
    (block(call("now", ""), call("weather", arg("city", "x")), call("now", "")), True),
    (block(call("now", arg("patch", "a </invoke> b\n<invoke name=x>"))), True),
    (block(call("now", "it is late")), False),
    (block(call("now", arg("zone", TURN))), False),
    ("see ]~b" + CALL, False),  # with the marker, the end of a turn
    # What a tool that is held must not come in by, through one that is not.
    (f'{NS}<tool_call>\n{NS}<invoke name="now">{BAD}{NS}</tool_call>', False),
    (block(call("now", f"{NS}<z>1{BAD}{NS}</z>")), False),
    (block(call("now", f"{NS}</invoke >\n{BAD}")), False),
    (block(call("now", f"{NS}</tool_call>{NS}<tool_call>\n{BAD}")), False),
    (block(call("now", f"{NS}<tool_call>{BAD}")), False),
]


@pytest.mark.parametrize(("text", "good"), OPTIONAL)
def test_a_call_that_may_be_made(model: Model, text: str, good: bool) -> None:
    """Once begun, it is held to its tool's schema; or to nothing but the markup."""
    grammar = tool_grammar(TOOLS, parallel=True, start="content", optional=True, free={"now"})
    assert model.takes(grammar, text, ends_early=True) is good
    if good:
        check_calls(text, "content", SCHEMAS_OF)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("seed", range(3))
def test_calls_that_are_made_are_held(model: Model, start: Start, seed: int) -> None:
    grammar = tool_grammar(TOOLS, parallel=True, start=start, optional=True, free={"now"})
    said = next(filter(None, (model.say(grammar, 100 * seed + i) for i in range(100))), None)
    assert said is not None
    check_calls(said, start, SCHEMAS_OF)


INSTEAD = {"properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ('{"a": 1}', True),
        (CALL, True),
        (block(call("now", arg("zone", "CET"))), True),
        (BAD, False),
        ('{"a": "x"}', False),
        ("It rains.", False),
        ("It rains." + CALL, False),
        ('{"a": 1}' + CALL, False),
    ],
)
@pytest.mark.parametrize("thought", [END_THINK, f"so\n{END_THINK}"])
def test_a_call_or_json(model: Model, thought: str, text: str, good: bool) -> None:
    answer: Any = ("json_schema", json.dumps(INSTEAD))
    grammar = tool_grammar(TOOLS, parallel=True, start="reasoning", optional=True, answer=answer, free={"now"})
    assert model.takes(grammar, thought + text) is good


THOUGHTS = {
    "": {"content", "undecided"},
    END_THINK: {"reasoning", "undecided"},
    f"so <b>\n{END_THINK}": {"reasoning"},
    f"{THINK}so\n{END_THINK}": {"reasoning", "undecided"},  # an opener said again is dropped by the parser
    f"so {NS}{END_THINK}": set(),
    f"a{END_THINK}b{END_THINK}": set(),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("thought", THOUGHTS)
def test_thinking_comes_first_and_is_free(model: Model, thought: str, start: Start) -> None:
    calls = tool_grammar(TOOLS, only=None, parallel=True, start=start)
    assert model.takes(calls, thought + block(call("now", ""))) is (start in THOUGHTS[thought])
    may = tool_grammar(TOOLS, parallel=True, start=start, optional=True)
    for words in ("", "Well.", block(call("now", "")), f"Well.\n{CALL}"):
        assert model.takes(may, thought + words, ends_early=True) is (start in THOUGHTS[thought])
    answer = format_grammar("json_object", "", start)
    assert model.takes(answer, thought + '{"a": [1, null]}') is (start in THOUGHTS[thought])


def test_the_marker_may_be_one_token() -> None:
    added, spelled = MODELS["added"], MODELS["spelled"]
    text = block(call("now", ""))
    counts = [m.tokenizer.encode(text).ids.count(m.tokenizer.token_to_id(NS) or -1) for m in (added, spelled)]
    assert counts == [4, 0]
    assert [len(m.tokenizer.encode(END_THINK).ids) == 1 for m in (added, spelled)] == [True, False]
    matcher = added.compiler.matcher(tool_grammar(TOOLS, only=None, parallel=True, start="content"))
    assert matcher.mask()[added.tokenizer.token_to_id(NS)]
    assert not matcher.mask()[added.tokenizer.token_to_id(TURN)]


UNIONS: list[tuple[Any, str, Any]] = [
    ({"type": ["string", "null"], "maxLength": 40}, "null", None),
    ({"type": ["string", "null"], "maxLength": 40}, "none", "none"),
    ({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}, "abc", "abc"),
    ({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}, arg("item", "x"), ["x"]),
    ({"type": "object"}, '{"a": {"b": [1, "<]"]}}', {"a": {"b": [1, "<]"]}}),
    ({"type": "object", "additionalProperties": {"type": "boolean"}}, '{"a": true}', {"a": True}),
    ({"properties": {"x": {"type": "integer"}}}, arg("x", "5"), {"x": 5}),
    ({"properties": {"x": {"type": "integer"}}}, "", {}),
    ({"items": {"type": "integer"}}, arg("item", "5"), [5]),
    ({"const": 5}, "5", 5),
    ({"anyOf": [{"const": 5}, {"const": "five"}]}, "5", 5),
    ({}, "5", "5"),
    ({"type": "string", "minLength": 40, "maxLength": 60}, "x" * 39 + "]", None),
]


@pytest.mark.parametrize(("schema", "text", "value"), UNIONS)
def test_values(model: Model, schema: Any, text: str, value: Any) -> None:
    root = {"type": "object", "properties": {"v": schema}, "required": ["v"]}
    answer = block(call("f", arg("v", text)))
    if model.takes(one(root), answer):
        (found,) = read(answer, "content", {"f": root}).calls
        assert json.loads(found.arguments) == {"v": value}
    else:
        assert "minLength" in schema


def test_a_value_that_would_be_read_as_another_is_not_written(model: Model) -> None:
    """Of properties with one name in several alternatives, the parser reads a text as the first of them says."""
    schema = {"anyOf": [{"properties": {"a": {"enum": [1]}}}, {"properties": {"a": {"const": 7}}}]}
    root = {"type": "object", "properties": {"v": schema}, "required": ["v"]}
    for value, good in (("1", True), ("7", False)):
        assert model.takes(one(root), block(call("f", arg("v", arg("a", value))))) is good


def test_a_value_may_look_like_markup(model: Model) -> None:
    """Where a grammar writes the calls, what looks like a missing tag is none."""
    inner = {"anyOf": [{"type": "number"}, {"type": "object", "required": ["v"]}]}
    root = {"type": "object", "properties": {"v": inner, "w": {"type": "string"}}, "required": ["v", "w"]}
    answer = block(call("f", arg("v", arg("v", "x")) + arg("w", "a</w>")))
    assert model.takes(one(root), answer)
    (found,) = read(answer, "content", {"f": root}).calls
    assert json.loads(found.arguments) == {"v": {"v": "x"}, "w": "a</w>"}


@pytest.mark.parametrize("seed", range(4))
def test_long_strings_are_counted(model: Model, seed: int) -> None:
    root = {"properties": {"v": {"type": "string", "minLength": 40, "maxLength": 60}}, "required": ["v"]}
    said = model.say(one(root), seed)
    assert said is not None
    check(said, "content", {"f": root})


@pytest.mark.parametrize(
    ("pattern", "whole", "not_whole"),
    [
        (r"^[a-z]+$", "abc", "a b"),
        (r"^\d{3}-\w*", "123-x!", "12-x"),
        ("b", "abc", "ac"),
        (r"^(a|b)/c$", "a/c", "ac"),
        (r"^#?[^\s/]+\.py$", "#a.py", "a/b.py"),
    ],
)
def test_patterns(pattern: str, whole: str, not_whole: str) -> None:
    made = simple_pattern(pattern)
    assert made is not None
    assert re.fullmatch(made, whole)
    assert not re.fullmatch(made, not_whole)
    root = {"properties": {"v": {"type": "string", "pattern": pattern}}, "required": ["v"]}
    for text in (whole, not_whole):
        assert MODELS["added"].takes(one(root), block(call("f", arg("v", text)))) is (text == whole)


@pytest.mark.parametrize("pattern", ["(?=a)b", r"(a)\1", "^a|b$", "a$b", r"\p{L}", "(", "a{1000}", 5, "\u65e5"])
def test_patterns_that_are_not_simple_are_not_held_to(pattern: Any) -> None:
    assert simple_pattern(pattern) is None
    one({"properties": {"v": {"type": "string", "pattern": pattern}}})


def agent(depth: int, name: str) -> dict[str, Any]:
    part = {
        "type": "object",
        "properties": {"text": {"type": "string"}, "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}}},
        "required": ["text"],
    }
    schema: dict[str, Any] = {"properties": {f"{name}{i}": {"type": "string"} for i in range(10)}}
    for level in range(depth):
        schema = {
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 1},
                "kind": {"enum": [f"{name}-{i}" for i in range(10)]},
                f"level{level}": schema,
                "more": {"type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 20},
                "mode": {"anyOf": [{"$ref": "#/$defs/part"}, {"type": "string"}, {"type": "null"}]},
                "limit": {"type": "integer", "minimum": 1, "maximum": 1000},
                "env": {"type": "object", "additionalProperties": {"type": "string"}},
            },
            "required": ["name"],
        }
    return {**schema, "$defs": {"part": part}}


def test_thirty_deep_tools_grow_the_grammar_in_step() -> None:
    tools = [(f"tool-{i}", agent(8, f"t{i}")) for i in range(30)]
    small, large = (tool_grammar(tools[:n], only=None, parallel=True, start="undecided") for n in (10, 30))
    assert len(large.value) < 3.2 * len(small.value)
    deep = one(agent(16, "t0"))
    assert len(deep.value) < 2.2 * len(one(agent(8, "t0")).value)
    said = MODELS["added"].say(large, 3, 4000)
    assert said is not None
    check(said, "undecided", dict(tools))


def wrap(schema: Any, **definitions: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"], "$defs": definitions}


def nested(depth: int, inner: Any) -> Any:
    for _ in range(depth):
        inner = {"anyOf": [inner]}
    return inner


REF: dict[str, Any] = {"$ref": "#/$defs/d0"}
CHAIN = {f"d{i}": {"type": "object", "properties": {"n": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(3000)} | {
    "d3000": {}
}
REFUSED: list[tuple[Any, str, str]] = [
    (nested(40, {"type": "string"}), "no value fits", "/properties/a"),
    (nested(200, {}), "100 deep", ""),
    ({"properties": {f"p{i}": {} for i in range(10_000)}}, "400 properties", "/properties/a"),
    ({"properties": {f"p{i}": {} for i in range(7000)}, "required": [f"p{i}" for i in range(7000)]}, "40000", ""),
    ({"properties": {f"p{i}": {"items": {}} for i in range(30_000)}}, "at most 20000", ""),
    ({"enum": [f"v{i}" for i in range(100_000)]}, "100000 values", "/properties/a/enum"),
    ({"enum": [str(i) * 90 for i in range(19_000)]}, "characters", ""),
    ({"$ref": "#"}, "no value fits", "/properties/a"),
    ({"type": "array", "minItems": 10**9}, "at most 256", "/properties/a/minItems"),
    ({"properties": {"x y": {}}, "required": ["x y"]}, "'x y'", "/properties/a/properties/x y"),
    ({"properties": {"a/b": {}}, "required": ["a/b"]}, "element", "/properties/a/properties/a~1b"),
    ({"properties": {"invoke": {}}, "required": ["invoke"]}, "element", "/properties/a/properties/invoke"),
    ({"enum": [f"a{NS}b"]}, "no value fits", "/properties/a"),
    (
        {
            "properties": {f"p{i}": {"type": "integer", "minimum": i} for i in range(1200)},
            "required": [*map("p{}".format, range(1200))],
        },
        "1000 different",
        "/properties/a",
    ),
    ({"enum": []}, "no value fits", "/properties/a"),
    ({"type": "integer", "minimum": 5, "maximum": 2}, "no value fits", "/properties/a"),
    (False, "no value fits", "/properties/a"),
]


@pytest.mark.parametrize(("schema", "message", "pointer"), REFUSED)
def test_what_cannot_be_held_to_is_refused(schema: Any, message: str, pointer: str) -> None:
    with pytest.raises(SchemaError, match=message) as caught:
        one(wrap(schema))
    assert caught.value.pointer.startswith(pointer)


HOSTILE: list[Any] = [
    *(None, 5, "x", [], True, False, {"properties": []}, {"type": 7}, {"required": "x"}, {"anyOf": 3}, {"enum": [1]}),
    *({"allOf": [3, None]}, {"properties": {"a": {"enum": {}, "const": 1}}}, {"properties": {"a": {"items": 3}}}),
    wrap(REF, d0={"anyOf": [REF, {"type": "string"}]}),
    wrap(REF, d0={"allOf": [REF, {"properties": {"x": REF}}]}),
    wrap(REF, d0={"anyOf": [REF] * 100}),
    wrap(REF, **CHAIN),
    {"allOf": [{"properties": {f"p{i}": {"allOf": [{"$ref": "#"}, {"minLength": 1}]} for i in range(30)}}] * 30},
    wrap({"type": "string", "pattern": "((a{99}){99}){99}"}),
    wrap({"type": "string", "minLength": 10**9}),
    wrap({"type": "string", "maxLength": 10**9}),
    wrap({"type": "integer", "minimum": float("inf"), "multipleOf": 0}),
    wrap({"enum": [f"v{i}" for i in range(20_000)]}),
    wrap({"type": ["integer", "string"], "enum": list(range(20_000))}),
    wrap({"enum": ["\ud800", "x"], "properties": {"\ud800": {}}}),
    {"properties": {"\ud800": {}, END_OF_TURN: {}, "x\u2003y": {}, "": {}}},
]


@pytest.mark.parametrize("schema", HOSTILE, ids=lambda s: repr(s)[:40])
def test_schemas_are_other_peoples_text(schema: Any) -> None:
    with contextlib.suppress(SchemaError, InvalidRequestError):
        MODELS["spelled"].say(one(schema), 1, 100)


@pytest.mark.parametrize("name", ["", 'a"b', "<a>", "x" * 300, "\n"])
def test_names_that_no_tag_can_hold(name: str) -> None:
    with pytest.raises(SchemaError, match="name"):
        tool_grammar([(name, {})], only=None, parallel=True, start="content")


FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 3},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "tags", "n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("start", STARTS)
def test_json_of_a_schema(model: Model, start: Start) -> None:
    for seed in range(4):
        said = model.say(format_grammar("json_schema", json.dumps(FORM), start), seed)
        assert said is not None
        content = read(said, start, {}).content
        jsonschema.validate(json.loads(content), FORM)
        assert content == json.dumps(json.loads(content), ensure_ascii=False) or "\\" in content


def test_json_has_one_form_of_white_space(model: Model) -> None:
    grammar = format_grammar("json_object", "", "content")
    assert model.takes(grammar, '{"a": [1, 2], "b": {}}')
    for text in ('{"a":1}', '{ "a": 1}', '{"a": 1}\n', '```json\n{"a": 1}\n```', "[1]", '{"a": 1} done'):
        assert not model.takes(grammar, text)


@pytest.mark.parametrize(
    ("schema", "message", "pointer"),
    [
        ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, "uniqueItems", "/properties/a"),
        ({"properties": {"a/b": {"type": "string", "format": "x"}}}, "format: x", "/properties/a~1b"),
        ({"properties": {"a": {"anyOf": [{}, {"not": {}}]}}}, "not", "/properties/a/anyOf/1"),
        (wrap(REF, d0={"items": {"type": "what"}}), "what", "/$defs/d0/items"),
        ({"properties": {"a": {"$ref": "#/nowhere"}}}, "nowhere", "/properties/a"),
        ({"if": {}}, "if", ""),
        (nested(200, {}), "100 deep", ""),
        ({"properties": {f"p{i}": {"items": {}} for i in range(30_000)}}, "at most 20000", ""),
    ],
)
def test_an_unsupported_schema_is_refused_by_its_place(schema: Any, message: str, pointer: str) -> None:
    with pytest.raises(SchemaError, match=message) as caught:
        format_grammar("json_schema", json.dumps(schema), "content")
    assert caught.value.pointer == pointer
    assert caught.value.tool is None


@pytest.mark.parametrize("text", ["{", "[]", "5", "[" * 100_000, ""])
def test_what_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(SchemaError, match=r"JSON|object"):
        format_grammar("json_schema", text, "content")


def test_a_chain_of_references_does_not_end_the_process() -> None:
    schema = json.dumps(wrap(REF, **CHAIN))
    MODELS["added"].compiler.matcher(format_grammar("json_schema", schema, "content"))
    MODELS["added"].compiler.matcher(Grammar("json_schema", schema))
