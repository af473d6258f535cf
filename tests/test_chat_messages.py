"""Conversations settled: system messages kept, tool results in order, thinking apart; what is wrong is named."""

from __future__ import annotations

import random

import pytest

from longsight.chat.errors import ChatError
from longsight.chat.messages import ChatMessage, Tool, ToolCall, settle


def user(text: str) -> ChatMessage:
    return ChatMessage("user", text, path="messages.7")


def system(text: str) -> ChatMessage:
    return ChatMessage("system", text)


def asks(*ids: str, content: str = "") -> ChatMessage:
    return ChatMessage("assistant", content, calls=tuple(ToolCall(i, f"tool-{i}", {}) for i in ids), path="messages.3")


def result(call: str, text: str = "") -> ChatMessage:
    return ChatMessage("tool", text or f"result of {call}", call_id=call, path=f"messages.{call}")


def shown(messages: list[ChatMessage]) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in messages]


def test_leading_system_messages_become_one() -> None:
    got = settle([ChatMessage("root", "root"), system("one"), system(""), system("two"), user("hi")])
    assert shown(got) == [("root", "root"), ("system", "one\n\ntwo"), ("user", "hi")]


def test_a_system_message_further_on_reaches_the_model() -> None:
    got = settle([user("a"), asks(), system("note"), system("more"), user("b"), asks(content="ok"), system("last")])
    assert shown(got) == [
        ("user", "a"),
        ("assistant", ""),
        ("user", "note\n\nmore\n\nb"),
        ("assistant", "ok"),
        ("user", "last"),
    ]


def test_results_are_put_in_the_order_of_the_calls() -> None:
    results = [result(i) for i in "abcd"]
    want = shown(settle([user("go"), asks(*"abcd"), *results, user("thanks")]))
    for seed in range(10):
        shuffled = results[:]
        random.Random(seed).shuffle(shuffled)
        assert shown(settle([user("go"), asks(*"abcd"), *shuffled, user("thanks")])) == want


def test_a_system_message_among_results_comes_after_them() -> None:
    got = settle([user("go"), asks("a", "b"), result("b"), system("psst"), result("a"), user("then")])
    assert shown(got)[2:] == [("tool", "result of a"), ("tool", "result of b"), ("user", "psst\n\nthen")]


@pytest.mark.parametrize(
    ("messages", "path", "words"),
    [
        ([], "messages", "at least one"),
        ([user("x"), result("a")], "messages.a", "called no tool"),
        ([user("x"), asks("a"), user("y")], "messages.3", "no tool message answers: 'a'"),
        ([user("x"), asks("a", "b"), result("a")], "messages.3", "'b'"),
        ([user("x"), asks("a"), result("z")], "messages.z", "'z'; the open calls are 'a'"),
        ([user("x"), asks("a"), result("a"), result("a")], "messages.a", "called no tool|second time"),
        ([user("x"), asks("a", "b"), result("a"), result("a")], "messages.a", "second time"),
        ([user("x"), ChatMessage("root", "now me", path="messages.1")], "messages.1", "only the first"),
    ],
)
def test_conversations_that_make_no_sense(messages: list[ChatMessage], path: str, words: str) -> None:
    with pytest.raises(ChatError, match=words) as caught:
        settle(messages)
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("content", "reasoning", "rest"),
    [
        ("<think>\nwhy\nnot\n</think>\n\nyes", "why\nnot", "yes"),
        ("<mm:think>why</mm:think>yes", "why", "yes"),
        ("\n<think></think>yes", "", "yes"),
        ("no <think>of</think> it", None, "no <think>of</think> it"),
        ("<think>never closed", None, "<think>never closed"),
    ],
)
def test_thinking_that_came_inline(content: str, reasoning: str | None, rest: str) -> None:
    (_, got) = settle([user("x"), ChatMessage("assistant", content)])
    assert (got.reasoning, got.content) == (reasoning, rest)
    (_, kept) = settle([user("x"), ChatMessage("assistant", content, reasoning="said apart")])
    assert (kept.reasoning, kept.content) == ("said apart", content)


@pytest.mark.parametrize("name", ["", "a b", 'a"b', "a<b", "a>b", "a]b", "x" * 257, 5, None])
def test_names_that_no_tool_may_have(name: object) -> None:
    with pytest.raises(ChatError, match=r"tools\.4\.name"):
        Tool.declare({"name": name}, "tools.4")


def test_names_with_dots_and_dashes_are_fine() -> None:
    tool = Tool.declare({"name": "mcp__files.read-all", "description": None}, "tools.0")
    assert (tool.name, tool.parameters) == ("mcp__files.read-all", {})
    with pytest.raises(ChatError, match=r"tools\.0\.parameters.*JSON schema"):
        Tool.declare({"name": "f", "parameters": []}, "tools.0")
