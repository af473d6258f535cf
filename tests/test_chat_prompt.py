"""Conversations as tokens: the format's layout, appending only, and literals in people's text that stay text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from longsight.chat.errors import ChatError
from longsight.chat.events import Message
from longsight.chat.format import IDENTITY, ROOT, render
from longsight.chat.messages import ChatMessage, Thinking, Tool, ToolCall, settle
from longsight.chat.parser import OutputParser
from longsight.chat.prompt import MARKERS, ChatFormat
from longsight.chat.template import ChatTemplate
from longsight.model import markup
from longsight.model.tokenizer import Tokenizer, byte_characters

NS = markup.NAMESPACE
SCHEMA = {"type": "object", "properties": {"zoo": {"type": "string"}, "apple": {"type": "integer"}}}
TOOL = Tool.declare({"name": "look", "parameters": SCHEMA, "description": "Schau <nach> & 'so'"}, "tools.0")


@pytest.fixture(scope="module", params=["bytes", "merges"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The markers are tokens of their own; the rest bytes, run as a table or, with one merge, by the library."""
    vocab = {character: byte for byte, character in byte_characters().items()}
    merges = [("a", "b")] if request.param == "merges" else []
    vocab |= {"ab": 256} if merges else {}
    library = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    for literal in MARKERS:
        # As published: what closes a turn is special, the namespace and the thinking markers are not.
        special = literal in (markup.TURN, markup.END_OF_TURN, markup.DOCUMENT)
        token = tokenizers.AddedToken(literal, special=special, normalized=False)
        (library.add_special_tokens if special else library.add_tokens)([token])
    directory = tmp_path_factory.mktemp("tokenizer")
    library.save(str(directory / "tokenizer.json"))
    return Tokenizer.from_dir(directory)


def test_the_layout() -> None:
    call = ToolCall(
        "1", "look", {"zoo": "a <b> & 'c'\n", "apple": 3, "no": None, "deep": {"x": [True, {"y": 1.5}], "e": []}}
    )
    messages = [
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "Hi"),
        ChatMessage("assistant", "Moment.", "hm", (call,)),
        ChatMessage("tool", "42", call_id="1"),
        ChatMessage("assistant", "Done"),
        ChatMessage("user", "Thanks"),
    ]
    text = render(settle(messages), [TOOL], "disabled")
    head, rest = text.split("]~b]developer\n")
    assert head.startswith(f"]~!b[]~b]system\n{ROOT}\n\n<thinking_instructions>\n")
    assert head.endswith("Answer without thinking.\n</thinking_instructions>[e~[\n")
    declared = '{"name": "look", "parameters": ' + json.dumps(SCHEMA) + ', "description": "Schau <nach> & \'so\'"}'
    assert rest.startswith("Be brief.\n\n# Tools\n")
    assert f"<tools>\n<tool>{declared}</tool>\n</tools>\n" in rest
    assert rest[rest.index("]~b]user") :] == (
        "]~b]user\nHi[e~[\n"
        f"]~b]ai\n<mm:think>hm</mm:think>Moment.{NS}<tool_call>\n"
        f"{NS}<invoke name=\"look\">{NS}<zoo>a <b> & 'c'\n{NS}</zoo>{NS}<apple>3{NS}</apple>"
        f"{NS}<deep>{NS}<x>{NS}<item>true{NS}</item>{NS}<item>{NS}<y>1.5{NS}</y>{NS}</item>{NS}</x>{NS}<e>{NS}</e>{NS}</deep>"
        f"{NS}</invoke>\n{NS}</tool_call>[e~[\n"
        "]~b]tool\n<response>42</response>[e~[\n"
        "]~b]ai\n</mm:think>Done[e~[\n"
        "]~b]user\nThanks[e~[\n]~b]ai\n</mm:think>"
    )


@pytest.mark.parametrize(
    ("mode", "end", "start"),
    [("adaptive", "ai\n", "undecided"), ("enabled", "<mm:think>", "reasoning"), ("disabled", "</mm:think>", "content")],
)
def test_modes(tokenizer: Tokenizer, mode: Thinking, end: str, start: str) -> None:
    assert render([ChatMessage("user", "x")], (), mode).endswith(end)
    assert ChatFormat(tokenizer).prompt([ChatMessage("user", "x")], (), mode).start == start


def test_what_is_there_without_any_system_message() -> None:
    assert f"]~b]developer\n{IDENTITY}[e~[\n" in render([ChatMessage("user", "x")])


TEXT = st.lists(st.sampled_from([*"ab<>/]~[\n\ue000", *MARKERS, "</response>"]), max_size=8).map("".join)
CALLS = st.lists(st.dictionaries(st.sampled_from("xy"), TEXT, max_size=2), max_size=3)


@st.composite
def chats(draw: st.DrawFn) -> list[ChatMessage]:
    messages = [ChatMessage("system", draw(TEXT))] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(1, 4))):
        messages.append(ChatMessage("user", draw(TEXT)))
        calls = tuple(ToolCall(f"{turn}.{i}", "f", a) for i, a in enumerate(draw(CALLS)))
        messages.append(ChatMessage("assistant", draw(TEXT), draw(st.none() | TEXT), calls))
        messages += [ChatMessage("tool", draw(TEXT), call_id=c.id) for c in calls]
    return messages


@settings(max_examples=150, deadline=None)
@given(chats(), TEXT)
def test_turns_are_only_appended(tokenizer: Tokenizer, chat: list[ChatMessage], more: str) -> None:
    """What has been read stays read: the next prompt begins with the last one's turns, token for token."""
    chat_format = ChatFormat(tokenizer)
    opened = len(tokenizer.encode(f"{markup.TURN}ai\n"))
    before = list(chat_format.prompt(chat).tokens)[:-opened]
    after = list(chat_format.prompt([*chat, ChatMessage("user", more)]).tokens)
    assert after[: len(before)] == before


@settings(max_examples=150, deadline=None)
@given(chats())
def test_literals_in_peoples_text_stay_text(tokenizer: Tokenizer, chat: list[ChatMessage]) -> None:
    """The marker tokens are those of the same conversation without any text; and nothing of the text is lost."""
    blank = [
        ChatMessage(
            m.role,
            "",
            "x" if m.reasoning else m.reasoning,
            tuple(ToolCall(c.id, c.name, dict.fromkeys(c.arguments, "")) for c in m.calls),
            m.call_id,
        )
        for m in settle(chat)
    ]
    chat_format, markers = ChatFormat(tokenizer), set(tokenizer.added_tokens.values())
    tokens = list(chat_format.prompt(chat).tokens)
    assert [t for t in tokens if t in markers] == [t for t in chat_format.prompt(blank).tokens if t in markers]
    plain = {i: literal for literal, i in tokenizer.added_tokens.items()}
    text, run = "", list[int]()
    for token in [*tokens, None]:
        if token is not None and token not in plain:
            run.append(token)
            continue
        text += tokenizer.decode(run) + (plain[token] if token is not None else "")
        run.clear()
    assert text == render(settle(chat))


def test_the_checkpoints_own_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
        "{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}{{ tools | tojson if tools else '' }}"
        "{{ flavour }}{{ '<mm:think>' if thinking_mode == 'enabled' else '' }}"
    )
    chat = ChatFormat(tokenizer, ChatTemplate(source))
    messages = [
        ChatMessage("user", "hi [e~["),
        ChatMessage("assistant", "", None, (ToolCall("1", "f", {"x": 1}),)),
        ChatMessage("tool", "r", call_id="1"),
    ]
    got = chat.prompt(messages, [TOOL], "enabled", {"flavour": "mint", "messages": "no"})
    assert got.start == "reasoning"
    assert tokenizer.added_tokens[markup.END_OF_TURN] not in got.tokens
    assert list(got.tokens)[-1] == tokenizer.added_tokens[markup.THINK]
    text = tokenizer.decode(list(got.tokens)[:-1])
    assert text.startswith('<user>hi [e~[<assistant>f{"x": 1}<tool>r[{"type": "function", "function": {"name": "look"')
    assert text.endswith("mint")
    assert not ChatFormat(tokenizer, ChatTemplate("{{ messages }}")).thinks
    with pytest.raises(ChatError, match="no, thanks"):
        ChatFormat(tokenizer, ChatTemplate("{{ raise_exception('no, thanks') }}")).prompt(messages)


JSON = st.recursive(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=10).filter(
        lambda s: "]<]" not in s and s == s.strip("\n")
    )
    | st.integers(-(10**9), 10**9)
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False, width=32),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b-c", "d.e"]), inner, min_size=1, max_size=3)
    ),
    max_leaves=8,
)


def schema_of(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"type": "boolean"}
        case int():
            return {"type": "integer"}
        case float():
            return {"type": "number"}
        case str():
            return {"type": "string"}
        case list():
            return {"type": "array", "items": {"anyOf": [schema_of(v) for v in value]}}
    return {"type": "object", "properties": {k: schema_of(v) for k, v in value.items()}}


def is_uniform(value: Any) -> bool:
    """Lists of one kind only: of several alternatives the first that parses wins, whatever was meant."""
    if isinstance(value, list):
        return len({json.dumps(schema_of(v)) for v in value}) == 1 and all(map(is_uniform, value))
    return all(map(is_uniform, value.values())) if isinstance(value, dict) else True


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["x", "y_1", "z"]), JSON.filter(is_uniform), max_size=3))
def test_what_is_rendered_is_read_back(arguments: dict[str, Any]) -> None:
    rendered = render([ChatMessage("assistant", "Right. ", None, (ToolCall("1", "f", arguments),))], open=False)
    answer = rendered[rendered.rindex(f"{markup.TURN}ai\n") + len(f"{markup.TURN}ai\n") :]
    parser = OutputParser("undecided", {"f": schema_of(arguments)})
    told = Message.of([*parser.push(answer), *parser.finish()])
    assert told.content == "Right. "
    (call,) = told.calls
    assert json.loads(call.arguments) == arguments
