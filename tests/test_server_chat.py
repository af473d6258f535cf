"""Chat completions with thinking and tools, through the official client: what arrives is what the model meant."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jsonschema
import openai
import pytest

from fake_model import FakeModel, ScriptedModel
from live_server import LiveServer, live_server
from longsight.model.markup import END_THINK, NAMESPACE, THINK

NS = NAMESPACE
WEATHER = {
    "type": "function",
    "function": {
        "name": "get-weather.v2",
        "description": "The weather of a place",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"type": "string"}, "days": {"type": "integer"}, "alpha": {"type": "boolean"}},
            "required": ["zone"],
        },
    },
}
CALL = (
    f'{NS}<invoke name="get-weather.v2">{NS}<zone>Al"ger\u00e9 \u65e5{NS}</zone>{NS}<days>3{NS}</days>{NS}</invoke>\n'
)
BLOCK = f"{NS}<tool_call>\n{CALL}{NS}</tool_call>"
TWO = f"{NS}<tool_call>\n{CALL}{CALL}{NS}</tool_call>"
ASK: list[Any] = [{"role": "user", "content": "Weather?"}]


@contextmanager
def scripted(answer: str | Callable[[str], str], **options: Any) -> Iterator[LiveServer]:
    model = ScriptedModel(answer if callable(answer) else lambda _: answer)
    with live_server(model, template=None, pages=512, **options) as server:
        yield server


def ask(server: LiveServer, **options: Any) -> Any:
    with server.client() as client:
        options = {"messages": ASK, "max_tokens": 500, "temperature": 0, **options}
        answer = client.chat.completions.create(model="tiny", **options)
        return list(answer) if options.get("stream") else answer


def joined(chunks: Any) -> dict[str, Any]:
    """What a client puts together from a stream."""
    whole: dict[str, Any] = {"content": "", "reasoning": "", "calls": {}, "finish": None, "roles": 0}
    for chunk in chunks:
        for choice in chunk.choices:
            delta = choice.delta
            extra = delta.model_extra or {}
            thought = extra.get("reasoning_content")
            assert not (thought and delta.content), "one delta holds both"
            whole["roles"] += delta.role is not None
            whole["content"] += delta.content or ""
            whole["reasoning"] += thought or ""
            for call in delta.tool_calls or ():
                entry = whole["calls"].setdefault(call.index, {"id": None, "name": None, "arguments": ""})
                entry["id"] = entry["id"] or call.id
                entry["name"] = entry["name"] or call.function.name
                entry["arguments"] += call.function.arguments or ""
            assert whole["finish"] is None or choice.finish_reason is None, "two endings"
            whole["finish"] = choice.finish_reason or whole["finish"]
    return whole


@pytest.mark.parametrize(
    ("answer", "finish", "content", "reasoning", "calls"),
    [
        ("Sunny.", "stop", "Sunny.", "", 0),
        (f"{THINK}Hm.\nSo.{END_THINK}Sunny.", "stop", "Sunny.", "Hm.\nSo.", 0),
        (f"{END_THINK}Sunny.", "stop", "Sunny.", "", 0),
        (f"Moment. {BLOCK}", "tool_calls", "Moment. ", "", 1),
        (f"{THINK}Hm.{END_THINK}{TWO}", "tool_calls", None, "Hm.", 2),
        (f"{THINK}Hm.{BLOCK}", "tool_calls", None, "Hm.", 1),
        (f"a ] b ]< c {NS} d </mm:think> <tool_call>", "stop", "a ] b ]< c  d  <tool_call>", "", 0),
    ],
)
def test_streams_and_whole_answers_agree(
    answer: str, finish: str, content: str | None, reasoning: str, calls: int
) -> None:
    with scripted(answer) as server:
        options: dict[str, Any] = {"tools": [WEATHER], "extra_body": {"reasoning_split": True}}
        (choice,) = ask(server, **options).choices
        stream = joined(ask(server, stream=True, **options))
    message = choice.message
    assert (choice.finish_reason, message.content) == (finish, content)
    assert getattr(message, "reasoning_content", "") == reasoning
    assert len(message.tool_calls or ()) == calls
    assert stream["roles"] == 1
    assert (stream["finish"], stream["content"], stream["reasoning"]) == (finish, content or "", reasoning)
    assert len(stream["calls"]) == calls
    for i, call in enumerate(message.tool_calls or ()):
        assert call.function.name == stream["calls"][i]["name"] == "get-weather.v2"
        assert call.function.arguments == stream["calls"][i]["arguments"]
        assert list(json.loads(call.function.arguments).items()) == [("zone", 'Al"ger\u00e9 \u65e5'), ("days", 3)]
        assert call.id.startswith("call_function_")
        assert stream["calls"][i]["id"].startswith("call_function_")
    assert len({c.id for c in message.tool_calls or ()}) == calls
    if reasoning:
        (detail,) = message.reasoning_details
        assert (detail["type"], detail["format"], detail["text"]) == (
            "reasoning.text",
            "MiniMax-response-v1",
            reasoning,
        )


def test_thinking_inline_by_default() -> None:
    # Without guesses each step brings one token, so that the closing one is known where it is several.
    with scripted(f"{THINK}Hm.{END_THINK}Sunny.", speculate=False) as server:
        (choice,) = ask(server).choices
        stream = joined(ask(server, stream=True))
        usage = ask(server).usage
    assert choice.message.content == stream["content"] == "<think>\nHm.\n</think>\n\nSunny."
    assert usage.completion_tokens_details.reasoning_tokens == len(f"{THINK}Hm.{END_THINK}")
    assert usage.completion_tokens == len(f"{THINK}Hm.{END_THINK}Sunny.") + 1  # and the end


def test_a_server_may_split_by_default() -> None:
    with scripted(f"{THINK}Hm.{END_THINK}Sunny.", reasoning_format="split") as server:
        assert ask(server).choices[0].message.reasoning_content == "Hm."
        inline = ask(server, extra_body={"reasoning_split": False}).choices[0].message
        assert inline.content.startswith("<think>")


@pytest.mark.parametrize(
    ("options", "ends"),
    [
        ({}, "ai\n"),
        ({"extra_body": {"thinking": {"type": "adaptive"}}}, "ai\n"),
        ({"extra_body": {"thinking": {"type": "enabled"}}}, THINK),
        ({"extra_body": {"thinking": {"type": "disabled"}}}, END_THINK),
        ({"reasoning_effort": "none"}, END_THINK),
        ({"reasoning_effort": "high"}, "ai\n"),
        ({"extra_body": {"chat_template_kwargs": {"thinking_mode": "disabled"}}}, END_THINK),
        ({"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}, END_THINK),
        ({"reasoning_effort": "none", "extra_body": {"thinking": {"type": "enabled"}}}, THINK),
    ],
)
def test_thinking_modes(options: dict[str, Any], ends: str) -> None:
    """The mode is the prompt's last word, and the answer is read accordingly."""
    answer = {"ai\n": "Yes.", THINK: f"hm{END_THINK}Yes.", END_THINK: "Yes."}[ends]
    with scripted(answer) as server:
        body = {**options.pop("extra_body", {}), "reasoning_split": True}
        message = ask(server, extra_body=body, **options).choices[0].message
        (prompt,) = server.model.prompts  # type: ignore[attr-defined]
    assert message.content == "Yes."
    assert getattr(message, "reasoning_content", None) == ("hm" if ends == THINK else None)
    mode = {"ai\n": "adaptive", THINK: "enabled", END_THINK: "disabled"}[ends]
    assert f"Current thinking mode: {mode}" in prompt


def test_a_loop_of_tools() -> None:
    """Calls, results in any order, an answer: what goes back to the model is what it wrote, and what the tools said."""

    def script(prompt: str) -> str:
        return f"It is 21 and 7 degrees{END_THINK}" if "<response>21" in prompt else f"{THINK}Both.{END_THINK}{TWO}"

    with scripted(script) as server:
        body = {"tools": [WEATHER], "extra_body": {"reasoning_split": True}}
        first = ask(server, **body).choices[0].message
        one, two = first.tool_calls
        history = [
            *ASK,
            first.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": two.id, "content": [{"type": "text", "text": "7"}]},
            {"role": "tool", "tool_call_id": one.id, "content": "21"},
        ]
        last = ask(server, messages=history, **body).choices[0]
        prompt = server.model.prompts[-1]  # type: ignore[attr-defined]
    # Declarations reach the model with their keys in the caller's order.
    assert f"<tool>{json.dumps(WEATHER['function'])}</tool>" in prompt
    assert last.message.content == "It is 21 and 7 degrees"
    assert f"{THINK}Both.{END_THINK}{TWO}[e~[\n" in prompt
    assert "]~b]tool\n<response>21</response>\n<response>7</response>[e~[\n" in prompt


def test_one_call_where_several_are_not_wanted() -> None:
    with scripted(TWO) as server:
        options = {"tools": [WEATHER], "parallel_tool_calls": False}
        assert len(ask(server, **options).choices[0].message.tool_calls) == 1
        assert len(joined(ask(server, stream=True, **options))["calls"]) == 1


def test_no_calls_where_none_are_wanted() -> None:
    with scripted(f"Well. {BLOCK}") as server:
        for options in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
            choice = ask(server, **options).choices[0]
            assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == ("Well. ", None, "stop")


def test_an_answer_cut_in_a_call() -> None:
    """What is complete is kept, what is not is never given out as if it were."""
    cut = len(BLOCK) - 40
    with scripted(BLOCK) as server:
        whole = ask(server, tools=[WEATHER], max_tokens=cut).choices[0]
        stream = joined(ask(server, tools=[WEATHER], max_tokens=cut, stream=True))
    assert (whole.finish_reason, whole.message.tool_calls) == ("length", None)
    assert stream["finish"] == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(stream["calls"][0]["arguments"])


def test_stop_strings_are_for_the_content() -> None:
    answer = f"{THINK}STOP no{END_THINK}Go on, STOP here. And on and on."
    with scripted(answer) as server:
        options: dict[str, Any] = {"stop": ["STOP"], "extra_body": {"reasoning_split": True}}
        choice = ask(server, **options).choices[0]
        stream = joined(ask(server, stream=True, **options))
        server.wait_until_idle()
    assert (choice.message.reasoning_content, choice.message.content) == ("STOP no", "Go on, ")
    assert (stream["reasoning"], stream["content"], stream["finish"]) == ("STOP no", "Go on, ", "stop")
    with scripted(f"Calling. {BLOCK}") as server:
        assert ask(server, stop=["ger"], tools=[WEATHER]).choices[0].finish_reason == "tool_calls"


def test_packets_are_of_a_sensible_size() -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 8
    with scripted(text) as server:
        chunks = ask(server, stream=True, max_tokens=400)
    texts = [c.choices[0].delta.content for c in chunks if c.choices[0].delta.content]
    assert "".join(texts) == text
    assert sum(len(t) < 5 for t in texts[1:-1]) <= 0.05 * len(texts) + 1
    assert len(texts[0]) < 5, "the first characters do not wait"


def test_arguments_grow_while_they_are_written() -> None:
    value = "x" * 400
    invoke = f'{NS}<invoke name="get-weather.v2">{NS}<zone>{value}{NS}</zone>{NS}</invoke>\n'
    with scripted(f"{NS}<tool_call>\n{invoke}{NS}</tool_call>") as server:
        chunks = ask(server, stream=True, tools=[WEATHER], max_tokens=800)
    parts = [c.choices[0].delta.tool_calls[0].function.arguments for c in chunks if c.choices[0].delta.tool_calls]
    assert json.loads("".join(parts)) == {"zone": value}
    assert len(parts) > 20


def test_several_answers_each_with_their_calls() -> None:
    with scripted(TWO) as server:
        whole = ask(server, n=2, tools=[WEATHER])
        ids = [c.id for choice in whole.choices for c in choice.message.tool_calls]
        assert len(set(ids)) == 4


UNIT = {
    "type": "object",
    "properties": {"unit": {"enum": ["c", "f"]}, "days": {"type": "array", "maxItems": 0}},
    "required": ["unit", "days"],
}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "units"}}])
def test_a_call_that_must_be_made_is_made(choice: Any) -> None:
    tools = [{"type": "function", "function": {"name": "units", "parameters": UNIT}}]
    with scripted("I would rather talk.") as server:
        whole = ask(server, tools=tools, tool_choice=choice, parallel_tool_calls=False).choices[0]
    assert whole.finish_reason == "tool_calls"
    (call,) = whole.message.tool_calls
    assert call.function.name == "units"
    assert json.loads(call.function.arguments) in [{"unit": "c", "days": []}, {"unit": "f", "days": []}]


def test_a_strict_tool_is_called_as_its_schema_says_or_not_at_all() -> None:
    def units(strict: bool) -> Any:
        return {"type": "function", "function": {"name": "units", "parameters": UNIT, "strict": strict}}

    body = f"{NS}<unit>kelvin{NS}</unit>{NS}<place>Oran{NS}</place>"
    with scripted(f'Well.{NS}<tool_call>\n{NS}<invoke name="units">{body}{NS}</invoke>\n{NS}</tool_call>') as server:
        for strict, heard in ((True, {"c", "f"}), (False, {"kelvin"})):
            choice = ask(server, tools=[units(strict), WEATHER]).choices[0]
            assert (choice.message.content, choice.finish_reason) == ("Well.", "tool_calls")
            (call,) = choice.message.tool_calls
            arguments = json.loads(call.function.arguments)
            assert arguments["unit"] in heard
            assert set(arguments) == ({"unit", "days"} if strict else {"unit", "place"})
    with scripted("I would rather talk.") as server:
        assert ask(server, tools=[units(True)]).choices[0].message.content == "I would rather talk."
    with scripted(BLOCK) as server:  # a tool that is not strict is called as ever, beside one that is
        (call,) = ask(server, tools=[units(True), WEATHER]).choices[0].message.tool_calls
        assert json.loads(call.function.arguments) == {"zone": 'Al"ger\u00e9 \u65e5', "days": 3}
        assert not ask(server, tools=[units(True), WEATHER], tool_choice="none").choices[0].message.tool_calls


def test_of_several_tools_of_one_name_the_first_counts() -> None:
    def days(kind: str, strict: bool) -> Any:
        parameters = {"type": "object", "properties": {"days": {"type": kind}}, "required": ["days"]}
        return {"type": "function", "function": {"name": "get-weather.v2", "parameters": parameters, "strict": strict}}

    with scripted(
        f'{NS}<tool_call>\n{NS}<invoke name="get-weather.v2">{NS}<days>3{NS}</days>{NS}</invoke>\n{NS}</tool_call>'
    ) as server:
        for kind, other, value in (("integer", "string", 3), ("string", "integer", "3")):
            for strict in (True, False):
                choice = ask(server, tools=[days(kind, strict), days(other, not strict)]).choices[0]
                (call,) = choice.message.tool_calls
                assert json.loads(call.function.arguments) == {"days": value}


def test_tools_may_be_called_where_the_answer_has_a_format() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for form in (named, {"type": "json_object"}):
        with scripted(BLOCK) as server:
            (call,) = ask(server, tools=[WEATHER], response_format=form).choices[0].message.tool_calls
            assert call.function.name == "get-weather.v2"
            choice = ask(server, tools=[WEATHER], response_format=form, tool_choice="none").choices[0]
            assert not choice.message.tool_calls
        with scripted('{"a": 5}') as server:
            choice = ask(server, tools=[WEATHER], response_format=form).choices[0]
            assert (choice.message.content, choice.message.tool_calls) == ('{"a": 5}', None)


def test_what_the_server_holds_is_not_for_the_model_to_read() -> None:
    def usage(**more: Any) -> int:
        tool = {"type": "function", "function": {**WEATHER["function"], **more}}
        return int(ask(server, tools=[tool]).usage.prompt_tokens)

    with scripted("Well.") as server:
        assert usage() == usage(strict=True) == usage(strict=False) != usage(parameters={})


def wrong(name: str) -> Any:
    parameters = {"type": "object", "properties": {name: {"type": "string"}}, "required": [name]}
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": [wrong("a b")], "tool_choice": "required"}, "tools", "/properties/a b of the schema of tool 'f'"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
            "response_format",
            "not",
        ),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "white space"),
        ({"tools": [{"type": "function", "function": {"name": "a", "strict": "y"}}]}, "tools.0.function.strict", "'y'"),
        ({"tools": [{"type": "retrieval"}]}, "tools.0", "function"),
        ({"tool_choice": "required"}, "tool_choice", "no tools are declared"),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice", "none, auto, required"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
            "declared are get-weather.v2",
        ),
        ({"thinking": {"type": "sometimes"}}, "thinking.type", "adaptive, enabled, disabled"),
        ({"chat_template_kwargs": {"thinking_mode": 5}}, "chat_template_kwargs.thinking_mode", "adaptive"),
        ({"messages": [*ASK, {"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages.1", "called no tool"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id", "null"),
        (
            {
                "messages": [
                    *ASK,
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}],
                    },
                ]
            },
            "messages.1.tool_calls.0.function.arguments",
            "not valid JSON",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]}]},
            "messages.0.content.0",
            "reads text only",
        ),
    ],
)
def test_what_makes_no_sense_is_named(fields: dict[str, Any], param: str, words: str) -> None:
    with scripted("x") as server, server.client() as client, pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body={"model": "tiny", "messages": ASK, **fields}, cast_to=object)
    assert caught.value.param == param
    assert words in str(caught.value)


def test_the_async_client() -> None:
    async def run(server: LiveServer) -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            asked: dict[str, Any] = {"model": "tiny", "messages": ASK, "temperature": 0}
            whole = await client.chat.completions.create(**asked)
            stream = await client.chat.completions.create(**asked, stream=True)
            text = "".join([c.choices[0].delta.content or "" async for c in stream])
            return whole.choices[0].message.content or "", text

    with scripted("Hello there.") as server:
        assert asyncio.run(run(server)) == ("Hello there.", "Hello there.")


def test_a_call_that_is_asked_for_always_comes() -> None:
    """A hundred prompts, a model that says anything at all, the highest temperature: each answer is the call."""
    schema = {
        "type": "object",
        "properties": {
            "unit": {"enum": ["celsius", "kelvin"]},
            "days": {"type": "integer", "minimum": 0, "maximum": 99},
            "exact": {"type": "boolean"},
            "spots": {"type": "array", "items": {"enum": ["roof", "well"]}, "minItems": 1, "maxItems": 2},
        },
        "required": ["unit", "days", "spots"],
    }
    tools = [
        {"type": "function", "function": {"name": name, "parameters": schema}} for name in ("measure", "look-up.v2")
    ]
    choices: list[Any] = ["required", {"type": "function", "function": {"name": "look-up.v2"}}]
    names = []
    with live_server(FakeModel(), template=None, pages=2048, max_running=16, max_queue=64) as server:
        for seed in range(10):
            fields: dict[str, Any] = {"tools": tools, "tool_choice": choices[seed % 2], "temperature": 2, "top_p": 1}
            fields |= {"extra_body": {"thinking": {"type": "disabled"}}, "parallel_tool_calls": False, "n": 10}
            answer = ask(server, messages=[{"role": "user", "content": f"{seed}"}], seed=seed, **fields)
            for choice in answer.choices:
                assert choice.finish_reason == "tool_calls", choice
                (call,) = choice.message.tool_calls
                names.append(call.function.name)
                assert seed % 2 == 0 or call.function.name == "look-up.v2"
                jsonschema.validate(json.loads(call.function.arguments), schema)
    assert len(names) == 100
    assert set(names) == {"measure", "look-up.v2"}
