"""Generated tasks over real text: what is learned can be known from the row, and rows keep to their length."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longsight.chat.events import Message
from longsight.chat.format import render
from longsight.chat.messages import Tool
from longsight.chat.parser import OutputParser
from longsight.chat.template import ChatTemplate
from longsight.model import ConfigError
from longsight.model.markup import DOCUMENT, END_OF_TURN, END_THINK, NAMESPACE, THINK, TURN
from longsight.model.tokenizer import FILE, Tokenizer
from longsight.train.batch import IGNORED
from longsight.train.facts import facts
from longsight.train.script import Material
from longsight.train.tasks import Context, build
from longsight.train.tokenizer import train
from longsight.train.tokens import TokenFile, TokenWriter

TEMPLATE = ChatTemplate((Path(__file__).parents[1] / "recipes/embedded/chat_template.jinja").read_text())
SYLLABLES = ("ka", "lo", "mi", "tur", "ves", "pon", "dra", "shi")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A tokenizer and a token file of made-up prose, half its words names."""
    coined = [a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES[:5]]
    words = [word.capitalize() if i % 2 else word for i, word in enumerate(coined)]
    rng = np.random.default_rng(0)
    prose = [" ".join(words[i] for i in rng.integers(0, len(words), 3000)) + "." for _ in range(4)]
    directory = tmp_path_factory.mktemp("text")
    train(prose, 700, (DOCUMENT, END_OF_TURN, TURN), markers=(NAMESPACE, THINK, END_THINK)).save(str(directory / FILE))
    tokenizer = Tokenizer.from_file(directory / FILE)
    with TokenWriter(directory / "tokens") as writer:
        writer.begin(tokenizer.vocab_size, "made up")
        for text in prose:
            writer.add(tokenizer.encode_plain(text))
    return Context(tokenizer.vocab_size, tokenizer, {"prose": TokenFile(directory / "tokens")})


def row(
    context: Context, name: str, length: int, seed: int, **options: object
) -> tuple[str, str, list[int], list[int]]:
    """A row as text, the same with what is not learned as dots, its tokens and its targets."""
    task = build(name, {"text": "prose", **options}, context)
    sampled = task.sample(np.random.default_rng(seed), length)
    again = task.sample(np.random.default_rng(seed), length)
    np.testing.assert_array_equal(sampled.tokens, again.tokens)
    np.testing.assert_array_equal(sampled.targets, again.targets)
    assert sampled.lengths == (len(sampled.tokens),)
    tokens, targets = sampled.tokens.tolist(), sampled.targets.tolist()
    assert all(target in (IGNORED, after) for target, after in zip(targets, tokens[1:], strict=False))
    assert targets[-1] == IGNORED
    return spell(context, tokens), spell(context, [t for t in targets if t != IGNORED]), tokens, targets


def spell(context: Context, ids: list[int]) -> str:
    """The text with its markers."""
    assert context.tokenizer is not None
    markers = {context.tokenizer.encode(m, add_special_tokens=False)[0]: m for m in (DOCUMENT, END_OF_TURN, TURN)}
    text, plain = "", list[int]()
    for token in [*ids, -1]:
        if token in markers or token < 0:
            text, plain = text + context.tokenizer.decode(plain) + markers.get(token, ""), []
        else:
            plain.append(token)
    return text


def turns(text: str) -> list[tuple[str, str]]:
    """(role, what it says) of a conversation."""
    assert text.startswith(DOCUMENT + TURN)
    parts = [part.partition("\n") for part in text.removeprefix(DOCUMENT + TURN).split(TURN)]
    return [(role, said.removesuffix("\n").removesuffix(END_OF_TURN)) for role, _, said in parts]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("alike", [False, True])
def test_facts_are_different_and_answers_are_in_their_statements(context: Context, seed: int, alike: bool) -> None:
    assert context.tokenizer is not None
    material = Material(context.tokenizer, context.texts["prose"])
    made = facts(material, np.random.default_rng(seed), 20, alike=alike)
    assert len({(fact.subject, fact.property) for fact in made}) == 20
    for fact in made:
        assert fact.value in fact.statement
        assert fact.value in fact.answer
        assert fact.subject.lower() in fact.statement.lower()
        assert fact.subject.lower() in fact.question.lower()
        assert "{" not in fact.statement + fact.question + fact.answer


@pytest.mark.parametrize("seed", range(6))
def test_subjects_that_are_alike_share_their_words(context: Context, seed: int) -> None:
    assert context.tokenizer is not None
    material = Material(context.tokenizer, context.texts["prose"])

    def shared(alike: bool) -> float:
        made = facts(material, np.random.default_rng(seed), 60, alike=alike)
        subjects = {fact.subject for fact in made}
        words = [word for subject in subjects for word in set(re.split("[ -]", subject)) - {"the"}]
        return sum(words.count(word) > 1 for word in words) / len(words)

    assert shared(True) > 0.7 > 0.4 > shared(False)


@pytest.mark.parametrize("seed", range(8))
def test_questions_are_answered_from_the_text(context: Context, seed: int) -> None:
    text, learned, _, _ = row(context, "questions", 700, seed, facts=[3, 6], asked=[2, 3], plain=0, thinking=1.0)
    said = turns(text)
    users, answers = [t for r, t in said if r == "user"], [t for r, t in said if r == "ai"]
    assert 2 <= len(users) == len(answers) <= 3
    for answer in answers:
        thought, _, content = answer.removeprefix(THINK).partition(END_THINK)
        assert answer.startswith(THINK)
        quoted = thought.removeprefix("The text says: ")
        assert quoted in users[0]
        assert f"{thought}{END_THINK}{content}{END_OF_TURN}" in learned
        assert any(word.strip(".") in quoted for word in content.split()[-2:])
    assert not any(user in learned for user in users)


@pytest.mark.parametrize("apart", [0.0, 1.0])
def test_facts_may_stand_in_paragraphs_of_their_own(context: Context, apart: float) -> None:
    options = {"facts": [4, 4], "asked": [4, 4], "plain": 0, "thinking": 1.0, "apart": apart}
    text, _, _, _ = row(context, "questions", 900, 3, **options)
    said = turns(text)
    read = next(t for r, t in said if r == "user")
    stated = [t.partition(END_THINK)[0].removeprefix(f"{THINK}The text says: ") for r, t in said if r == "ai"]
    assert len(set(stated)) == 4
    assert all(sentence in read for sentence in stated)
    assert [f"\n\n{sentence}\n\n" in read for sentence in stated] == [bool(apart)] * 4


@pytest.mark.parametrize("thinking", [0, 1])
def test_a_drill_learns_values_alone(context: Context, thinking: int) -> None:
    options = {"facts": [4, 4], "asked": [3, 3], "plain": 0, "thinking": thinking}
    drilled, values, _, targets = row(context, "questions", 700, 5, drill=1.0, **options)
    whole, learned, _, _ = row(context, "questions", 700, 5, drill=1e-9, **options)
    assert drilled == whole  # the same row, but for what is learned of it
    assert 0 < len(values) < len(learned) / 2
    answers = [said.partition(END_THINK)[2] for role, said in turns(drilled) if role == "ai"]
    runs = np.flatnonzero(np.diff([t != IGNORED for t in targets], prepend=False, append=False)).reshape(-1, 2)
    found = [spell(context, targets[a:b]).strip() for a, b in runs.tolist()]
    assert len(found) == len(answers) == 3
    assert all(value in answer and value in values for value, answer in zip(found, answers, strict=True))


@pytest.mark.parametrize(("length", "facts"), [(200, [9, 9]), (250, [40, 40]), (400, [1, 1])])
def test_rows_are_exactly_as_long_as_asked(context: Context, length: int, facts: list[int]) -> None:
    for seed in range(6):
        _, learned, tokens, _ = row(context, "questions", length, seed, facts=facts)
        assert len(tokens) == length
        assert learned


def test_sentences_outside_a_chat_are_continued(context: Context) -> None:
    text, learned, _, _ = row(context, "questions", 500, 3, facts=[4, 4], asked=[2, 2], plain=1.0)
    assert TURN not in text
    endings = [ending for ending in learned.split(".") if ending.strip()]
    assert len(endings) == 2
    assert all(text.count(ending.split()[-1]) >= 2 for ending in endings)


@pytest.mark.parametrize("seed", range(8))
def test_calls_are_of_declared_tools_with_what_the_user_said(context: Context, seed: int) -> None:
    text, learned, _, _ = row(context, "tool-calls", 1500, seed, tools=[2, 3], thinking=0)
    said = turns(text)
    assert said[0][0] == "developer"
    declared = {}
    for line in said[0][1].splitlines():
        if line.startswith("<tool>"):
            function = json.loads(line.removeprefix("<tool>").removesuffix("</tool>"))
            declared[function["name"]] = function["parameters"]
    calls = 0
    for (_, wish), (role, answer) in itertools.pairwise(said):
        if role != "ai" or NAMESPACE not in answer:
            continue
        parser = OutputParser("undecided", declared)
        message = Message.of([*parser.push(answer), *parser.finish()])
        (call,) = message.calls
        arguments = json.loads(call.arguments)
        assert call.name in declared
        assert not any(parser.anomalies.values())
        assert set(arguments) == set(declared[call.name]["required"])
        assert all(str(value) in wish for value in arguments.values())
        assert answer.removeprefix(END_THINK) in learned
        calls += 1
    assert calls >= 1


def test_declared_tools_are_written_as_the_server_writes_them(context: Context) -> None:
    text, _, _, _ = row(context, "tool-calls", 1500, 0, tools=[1, 1])
    line = next(line for line in text.splitlines() if line.startswith("<tool>"))
    function = json.loads(line.removeprefix("<tool>").removesuffix("</tool>"))
    assert line in render([], [Tool(function["name"], function["parameters"], function)])


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name in ("questions", "tool-calls") for seed in range(8)])
def test_conversations_are_as_the_template_of_the_embedded_model_writes_them(
    context: Context, name: str, seed: int
) -> None:
    text, _, _, _ = row(context, name, 1200, seed, **({"plain": 0, "facts": [2, 3]} if name == "questions" else {}))
    messages: list[dict[str, Any]] = []
    tools: list[dict[str, Any]] = []
    for role, said in turns(text):
        if role == "developer":
            lines = [line for line in said.splitlines() if line.startswith("<tool>")]
            tools = [{"function": json.loads(line.removeprefix("<tool>").removesuffix("</tool>"))} for line in lines]
        elif role == "ai":
            schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
            parser = OutputParser("undecided", schemas)
            message = Message.of([*parser.push(said), *parser.finish()])
            calls = [{"function": {"name": c.name, "arguments": json.loads(c.arguments)}} for c in message.calls]
            messages.append(
                {
                    "role": "assistant",
                    "content": message.content,
                    "reasoning_content": message.reasoning,
                    "tool_calls": calls,
                }
            )
        else:
            messages.append({"role": role, "content": said.removeprefix("<response>").removesuffix("</response>")})
    rendered = TEMPLATE.render(messages, tools=tools).removesuffix(f"{TURN}ai\n")
    assert rendered == text


def test_the_template_opens_the_answer_as_the_thinking_mode_asks() -> None:
    asked = [{"role": "user", "content": "Who?"}]
    for mode, opened in {"enabled": THINK, "disabled": END_THINK, "adaptive": ""}.items():
        assert TEMPLATE.render(asked, thinking_mode=mode).endswith(f"{TURN}ai\n{opened}")


def test_wishes_as_people_say_them(context: Context) -> None:
    text, _, _, _ = row(context, "tool-calls", 3000, 3, tools=[1, 1], unnamed=1.0, described=1.0)
    declared = [json.loads(tool) for tool in re.findall(r"<tool>(.+?)</tool>", text)]
    assert all(
        p["description"].startswith("The ") for tool in declared for p in tool["parameters"]["properties"].values()
    )
    options: dict[str, Any] = {"tools": [1, 1], "thinking": 0, "unnamed": 1.0}
    for seed in range(40):  # until a function has one parameter
        text, _, _, _ = row(context, "tool-calls", 400, seed, **options)
        names = re.findall(rf"{re.escape(NAMESPACE)}<(\w+)>(.+?){re.escape(NAMESPACE)}</\1>", text)
        tool = json.loads(re.findall(r"<tool>(.+?)</tool>", text)[0])
        if names and len(tool["parameters"]["properties"]) == 1:
            break
    name, value = names[0]
    wish = next(said for role, said in turns(text) if role == "user")
    assert value in wish
    assert f"{name} {value}" not in wish
    assert f"{name} is {value}" not in wish


def test_a_row_too_short_for_its_tools_declares_fewer(context: Context) -> None:
    for length in (60, 200, 400):
        _, _, tokens, _ = row(context, "tool-calls", length, 1, tools=[6, 6])
        assert len(tokens) <= length


@pytest.mark.parametrize("seed", range(4))
def test_copied_tokens_follow_what_they_followed_before(context: Context, seed: int) -> None:
    _, _, tokens, targets = row(context, "copying", 256, seed)
    learned = [i + 1 for i, target in enumerate(targets) if target != IGNORED]
    assert len(learned) > 60
    assert len(tokens) == 256
    for i in learned:
        cue = tokens[i - 2 : i + 1]
        assert any(tokens[j : j + 3] == cue for j in range(i - 2)), i


@pytest.mark.parametrize("seed", range(4))
def test_in_narrow_rows_four_tokens_tell_the_next(context: Context, seed: int) -> None:
    _, _, tokens, targets = row(context, "copying", 512, seed, narrow=1.0, alphabet=[8, 12], sizes=[6, 20])
    learned = [i + 1 for i, target in enumerate(targets) if target != IGNORED]
    assert len(learned) > 60
    misleading = 0
    for i in learned:
        followers = [{tokens[j + n] for j in range(i - n) if tokens[j : j + n] == tokens[i - n : i]} for n in (1, 4)]
        assert followers[1] == {tokens[i]}
        misleading += len(followers[0]) > 1
    assert misleading > len(learned) / 2


@pytest.mark.parametrize(("seed", "length"), [*((seed, 700) for seed in range(8)), (8, 150), (9, 60)])
def test_lists_name_the_values_in_the_order_of_the_text(context: Context, seed: int, length: int) -> None:
    text, learned, tokens, _ = row(context, "lists", length, seed, things=[1, 3], values=[2, 4])
    assert len(tokens) == length
    answers = re.findall(r"\n(?:The (\d+) (.+?)s for (.+?) are|All (.+?)s for (.+?):) (.+?)\.(?=\n|$)", text)
    assert bool(answers) == (length > 60)  # a row too short for one thing is cut
    for count, *words, said in answers:
        first, second, third, fourth = words
        stated = re.findall(rf"{re.escape(first or third)}s? for {re.escape(second or fourth)} is (.+?)\.", text)
        assert re.split(", | and ", said) == stated
        assert count in ("", str(len(stated)))
        assert f" {said}." in learned


@pytest.mark.parametrize(("seed", "length"), [*((seed, 900) for seed in range(8)), (8, 200)])
def test_a_variable_has_the_number_that_its_chain_begins_with(context: Context, seed: int, length: int) -> None:
    text, learned, tokens, _ = row(context, "tracking", length, seed, chains=[2, 3], links=[2, 4])
    assert len(tokens) == length
    known: dict[str, str] = {}
    for name, source in re.findall(r"The value of ([A-Z]+) is (the value of [A-Z]+|\d+)\.", text):
        known[name] = source if source.isdigit() else known[source.split()[-1]]  # set before it is used
    asked = dict(re.findall(r"\nWritten as a number, the value of ([A-Z]+) is (\d+)\.", text))
    assert asked == known
    assert learned.split(".")[:-1] == [f" {number}" for number in asked.values()]


@pytest.mark.parametrize(("seed", "zipf", "length"), [(s, z, 600) for s in range(5) for z in (0, 1)] + [(5, 0, 90)])
def test_the_most_frequent_words_are_counted(context: Context, seed: int, zipf: int, length: int) -> None:
    text, learned, tokens, _ = row(context, "counting", length, seed, asked=[1, 4], zipf=zipf)
    assert length - 20 < len(tokens) <= length
    words = text.removeprefix(DOCUMENT).partition("\n\nThe ")[0].split("\n")
    count = {word: words.count(word) for word in words}
    top = sorted(count, key=lambda word: (-count[word], words.index(word)))
    said = re.split(", | and ", learned.strip(" ."))
    assert said == top[: len(said)]
    assert count[said[-1]] > max(count[word] for word in top[len(said) :])
    assert (f"The {len(said)} words" if len(said) > 1 else "The word ") in text


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("questions", {"text": "poems"}, "text is 'poems'; expected one of prose"),
        ("questions", {}, "text is missing"),
        ("questions", {"text": "prose", "thinking": 2}, "thinking is 2"),
        ("tool-calls", {"text": "prose", "tools": [0, 1]}, "tools is"),
        ("copying", {"text": "prose", "sizes": [2, 4]}, "sizes is"),
        ("copying", {"text": "prose", "vocabulary": 1 << 20}, "vocabulary is"),
        ("lists", {"text": "prose", "values": [0, 2]}, "values is"),
        ("tracking", {"text": "prose", "links": [3, 2]}, "links is"),
        ("counting", {"text": "prose", "zipf": 1.5}, "zipf is"),
    ],
)
def test_bad_options_are_named(context: Context, name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        build(name, options, context)


def test_a_tokenizer_without_the_markers_is_refused(context: Context, tmp_path: Path) -> None:
    train(["plain"], 300, (DOCUMENT,)).save(str(tmp_path / FILE))
    bare = Context(300, Tokenizer.from_file(tmp_path / FILE), context.texts)
    with pytest.raises(ConfigError, match="a chat needs it as one"):
        build("questions", {"text": "prose"}, bare)
