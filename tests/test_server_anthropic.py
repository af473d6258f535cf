"""The Messages protocol as Anthropic's own client sees it, over a real socket."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from fake_model import FakeModel, ScriptedModel
from live_server import LiveServer, live_server
from longsight.engine import SamplingDefaults
from longsight.model.markup import END_THINK, NAMESPACE, THINK
from longsight.server.auth import StaticKey
from longsight.server.usage import UsageRecord

GREEDY = SamplingDefaults(temperature=0)
ASK: dict[str, Any] = {"model": "tiny", "max_tokens": 800, "messages": [{"role": "user", "content": "And now?"}]}
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "The weather of a place.",
    "input_schema": {
        "type": "object",
        "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["place"],
    },
    "cache_control": {"type": "ephemeral"},
}
ADAPTIVE = {"type": "adaptive"}


def calls(*invokes: tuple[str, dict[str, Any]]) -> str:
    written = "".join(
        f'{NAMESPACE}<invoke name="{name}">'
        + "".join(f"{NAMESPACE}<{k}>{v}{NAMESPACE}</{k}>" for k, v in arguments.items())
        + f"{NAMESPACE}</invoke>\n"
        for name, arguments in invokes
    )
    return f"{NAMESPACE}<tool_call>\n{written}{NAMESPACE}</tool_call>"


@contextmanager
def scripted(script: Callable[[str], str] | str, **options: Any) -> Iterator[tuple[LiveServer, ScriptedModel]]:
    """A server whose model says what the script tells it to."""
    model = ScriptedModel(script if callable(script) else lambda _: script)
    options = {"template": None, "pages": 1024, "chunk_tokens": 512, "defaults": GREEDY, **options}
    with live_server(model, **options) as server:
        yield server, model


@contextmanager
def client_of(server: LiveServer, **options: Any) -> Iterator[anthropic.Anthropic]:
    options = {"api_key": "none", "max_retries": 0, "timeout": 30, **options}
    with anthropic.Anthropic(base_url=f"{server.url}/anthropic", **options) as client:
        yield client


def events_of(server: LiveServer, body: dict[str, Any], **headers: str) -> list[dict[str, Any]]:
    """A stream's events as they come over the wire, each name checked against its data."""
    found: list[dict[str, Any]] = []
    url = f"{server.url}/v1/messages?beta=true"
    with (
        httpx.Client(timeout=30, headers=headers) as client,
        client.stream("POST", url, json={**body, "stream": True}) as response,
    ):
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    for name, data in zip(lines[::2], lines[1::2], strict=True):
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def bare(content: Sequence[Any]) -> list[dict[str, Any]]:
    """Blocks without their ids, which are drawn anew each time, and without what says nothing."""
    return [
        {k: v for k, v in block.model_dump(exclude_none=True).items() if k != "id" and v != []} for block in content
    ]


def test_a_whole_answer() -> None:
    with scripted("All is well.") as (server, model), client_of(server) as client:
        raw = client.messages.with_raw_response.create(**ASK, system="You are a watchman.")
        assert raw.headers["request-id"] == raw.headers["x-request-id"]
        answer = raw.parse()
        assert bare(answer.content) == [{"type": "text", "text": "All is well."}]
        assert (answer.type, answer.role, answer.model) == ("message", "assistant", "tiny")
        assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
        assert answer.id.startswith("msg_")
        (prompt,) = model.prompts
        assert "You are a watchman." in prompt
        assert set(json.loads(raw.text())["usage"]) == {
            "input_tokens",
            "output_tokens",
            "cache_creation_input_tokens",
            "cache_read_input_tokens",
            "cache_creation",
            "output_tokens_details",
            "server_tool_use",
            "service_tier",
            "inference_geo",
        }
        # The closer of the thinking is the end of the prompt here, though the script counts it as the answer's.
        assert answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0) == len(prompt + END_THINK)
        assert answer.usage.output_tokens == len("All is well.") + 1


def test_the_order_of_a_streams_events() -> None:
    answer = f"{THINK}A question.{END_THINK}Wait." + calls(("weather", {"place": "Oslo", "days": 3}))
    with scripted(answer) as (server, _):
        events = events_of(server, {**ASK, "thinking": ADAPTIVE, "tools": [WEATHER]})
    kinds = [key for key, _ in itertools.groupby(_kind(event) for event in events)]
    assert kinds == [
        "message_start",
        "ping",
        *("start thinking", "thinking_delta", "signature_delta", "content_block_stop"),
        *("start text", "text_delta", "content_block_stop"),
        *("start tool_use", "input_json_delta", "content_block_stop"),
        "message_delta",
        "message_stop",
    ]
    assert [e["index"] for e in events if e["type"] == "content_block_start"] == [0, 1, 2]
    assert [e["index"] for e in events if e["type"] == "content_block_stop"] == [0, 1, 2]
    first, last = events[0]["message"], events[-2]
    assert (first["content"], first["stop_reason"]) == ([], None)
    assert first["usage"].keys() == last["usage"].keys()
    assert first["usage"]["input_tokens"] == last["usage"]["input_tokens"] > 0
    assert (first["usage"]["output_tokens"], last["usage"]["output_tokens"]) == (0, len(answer) + 1)
    assert last["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    signed = next(e["delta"]["signature"] for e in events if _kind(e) == "signature_delta")
    assert len(bytes.fromhex(signed)) == 32


def _kind(event: dict[str, Any]) -> str:
    if event["type"] == "content_block_start":
        return f"start {event['content_block']['type']}"
    return str(event.get("delta", {}).get("type", event["type"]))


@pytest.mark.parametrize(
    ("answer", "options", "stop_reason", "kinds"),
    [
        ("Only text, of ümläuts and 漢字 too.", {}, "end_turn", ["text"]),
        ("", {}, "end_turn", []),
        (f"{THINK}Hm.\nHm.{END_THINK}Yes.", {"thinking": ADAPTIVE}, "end_turn", ["thinking", "text"]),
        (f"{THINK}Never an end", {"thinking": ADAPTIVE, "max_tokens": 20}, "max_tokens", ["thinking"]),
        ("One two three four", {"stop_sequences": ["zz", " three"]}, "stop_sequence", ["text"]),
        (calls(("weather", {"place": "Oslo"})), {"tools": [WEATHER]}, "tool_use", ["tool_use"]),
        (
            "Both." + calls(("weather", {"place": "Oslo", "days": 2}), ("weather", {"place": "Rome"})),
            {"tools": [WEATHER]},
            "tool_use",
            ["text", "tool_use", "tool_use"],
        ),
    ],
)
def test_stream_and_whole_agree(answer: str, options: dict[str, Any], stop_reason: str, kinds: list[str]) -> None:
    with scripted(answer) as (server, _), client_of(server) as client:
        whole = client.messages.create(**{**ASK, **options})
        with client.messages.stream(**{**ASK, **options}) as stream:
            streamed = stream.get_final_message()
    assert [block.type for block in whole.content] == kinds
    assert bare(streamed.content) == bare(whole.content)
    assert streamed.stop_reason == whole.stop_reason == stop_reason
    assert streamed.stop_sequence == whole.stop_sequence == (" three" if stop_reason == "stop_sequence" else None)
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    read, cached = streamed.usage.input_tokens, streamed.usage.cache_read_input_tokens or 0
    assert read + cached == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
    assert cached > 0


def test_a_call_that_was_cut_off_is_no_part_of_the_whole() -> None:
    with scripted("Wait." + calls(("weather", {"place": "Oslo"}))) as (server, _), client_of(server) as client:
        answer = client.messages.create(**{**ASK, "max_tokens": 100}, tools=[WEATHER])
        events = events_of(server, {**ASK, "max_tokens": 100, "tools": [WEATHER]})
    assert (answer.stop_reason, [block.type for block in answer.content]) == ("max_tokens", ["text"])
    assert [e["index"] for e in events if e["type"] == "content_block_stop"] == [0, 1]


def test_async() -> None:
    async def ask(url: str) -> tuple[str, str]:
        async with anthropic.AsyncAnthropic(base_url=f"{url}/anthropic", api_key="none", max_retries=0) as client:
            answer = await client.messages.create(**ASK)
            async with client.messages.stream(**ASK) as stream:
                texts = [text async for text in stream.text_stream]
        assert isinstance(answer.content[0], anthropic.types.TextBlock)
        return answer.content[0].text, "".join(texts)

    with scripted("All is well.") as (server, _):
        assert asyncio.run(ask(server.url)) == ("All is well.", "All is well.")


def test_a_tool_loop_with_parallel_calls_and_shuffled_results() -> None:
    places = ["Oslo", "Rome", "Lima"]

    def script(prompt: str) -> str:
        if "]~b]tool" not in prompt:
            return "Looking." + calls(*(("weather", {"place": place, "days": 2}) for place in places))
        return "Warmest is " + prompt.rsplit("<response>", 1)[1].split("<", 1)[0]

    with scripted(script) as (server, model), client_of(server) as client:
        history: list[Any] = [*ASK["messages"]]
        asked = client.messages.create(**{**ASK, "messages": history}, tools=[WEATHER])
        uses = [block for block in asked.content if block.type == "tool_use"]
        assert [use.input for use in uses] == [{"place": place, "days": 2} for place in places]
        assert all(use.id.startswith("toolu_") for use in uses)
        assert len({use.id for use in uses}) == 3
        answers = set()
        for order in itertools.permutations(uses):
            results = [
                {
                    "type": "tool_result",
                    "tool_use_id": use.id,
                    "content": [{"type": "text", "text": f"{use.input['place']}, 30°"}],
                }
                for use in order
            ]
            then = [*results, {"type": "text", "text": "Go on.", "cache_control": {"type": "ephemeral"}}]
            messages = [*history, {"role": "assistant", "content": asked.content}, {"role": "user", "content": then}]
            answer = client.messages.create(**{**ASK, "messages": messages}, tools=[WEATHER])
            answers.add(answer.content[0].text)
        assert answers == {"Warmest is Lima, 30°"}
        first, second = model.prompts  # all six orders gave one prompt
        assert second.startswith(first)
        assert second.endswith("<response>Lima, 30°</response>[e~[\n]~b]user\nGo on.[e~[\n]~b]ai\n")


def test_results_of_failures_and_in_several_messages() -> None:
    history = [
        {"role": "user", "content": "Go."},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "weather", "input": {"place": "x"}}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "b", "name": "weather", "input": {"place": "y"}}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Between."},
                {"type": "tool_result", "tool_use_id": "b", "is_error": True, "content": "no such place"},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"}]},
    ]
    with scripted("Well.") as (server, model), client_of(server) as client:
        client.messages.create(**{**ASK, "messages": history}, tools=[WEATHER])
    (prompt,) = model.prompts
    results = "<response></response>\n<response>Error: no such place</response>[e~[\n]~b]user\nBetween.[e~[\n"
    assert f"]~b]tool\n{results}" in prompt


@pytest.mark.parametrize("signed", ["own", "foreign", "none"])
def test_thinking_comes_back_in_every_turn(signed: str) -> None:
    """Ten turns: each prompt goes on from the one before, thinking included, so that the cache holds it."""
    with (
        scripted(lambda prompt: f"{THINK}Thought {prompt.count(']~b]user')}.{END_THINK}Said.") as (server, model),
        client_of(server) as client,
    ):
        history: list[Any] = []
        for turn in range(1, 11):
            history.append({"role": "user", "content": f"Question {turn}"})
            answer = client.messages.create(**{**ASK, "messages": history}, thinking=ADAPTIVE)
            content = [block.model_dump(exclude_none=True) for block in answer.content]
            assert content[0]["thinking"] == f"Thought {turn}."
            if signed == "foreign":
                content[0]["signature"] = "EqoBCkgIARABGAIiQL8not-ours=="
            elif signed == "none":
                del content[0]["signature"]
            history.append({"role": "assistant", "content": content})
            if turn > 1:
                assert model.prompts[-1].startswith(model.prompts[-2])
                assert (answer.usage.cache_read_input_tokens or 0) > len(model.prompts[-2]) - 64
        assert len(model.prompts) == 10
        assert [f"{THINK}Thought {turn}.{END_THINK}" in model.prompts[-1] for turn in range(1, 11)] == [True] * 9 + [
            False
        ]


@pytest.mark.parametrize(
    ("thinking", "prefill", "mode"),
    [
        (None, END_THINK, "disabled"),
        ({"type": "disabled"}, END_THINK, "disabled"),
        ({"type": "adaptive", "display": "summarized"}, "", "adaptive"),
        ({"type": "enabled", "budget_tokens": 1024}, THINK, "enabled"),
    ],
)
def test_thinking_modes(thinking: dict[str, Any] | None, prefill: str, mode: str) -> None:
    said = "Done." if mode == "disabled" else f"{THINK}Thought.{END_THINK}Done."
    with scripted(said) as (server, model), client_of(server) as client:
        answer = client.messages.create(**ASK, **({"thinking": thinking} if thinking else {}))
        total = answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)
        assert f"Current thinking mode: {mode}" in model.prompts[0]
        assert total == len(model.prompts[0] + prefill)
        details = answer.usage.output_tokens_details
        assert details is not None
        assert (details.thinking_tokens > 0) == (mode != "disabled")
    assert [block.type for block in answer.content] == (["text"] if mode == "disabled" else ["thinking", "text"])


def test_tokens_are_counted_as_the_real_request_counts_them() -> None:
    body: dict[str, Any] = {
        "model": "tiny",
        "system": [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}],
        "messages": [
            {"role": "user", "content": "Where?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                    {"type": "redacted_thinking", "data": "opaque"},
                    {"type": "tool_use", "id": "a", "name": "weather", "input": {"place": "Oslo", "days": 1}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "fog"}]},
        ],
        "tools": [WEATHER],
        "thinking": ADAPTIVE,
        "tool_choice": {"type": "auto"},
    }
    with scripted("So.") as (server, model), client_of(server) as client:
        counted = client.messages.count_tokens(**body)
        assert model.prompts == []
        for _ in range(2):
            usage = client.messages.create(**body, max_tokens=9).usage
            assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted.input_tokens
        assert usage.cache_read_input_tokens
        without = httpx.post(f"{server.url}/v1/messages/count_tokens?beta=true", json={**body, "tools": []})
        assert 0 < without.json()["input_tokens"] < counted.input_tokens
        assert "]~b]developer\nOne.\n\nTwo." in model.prompts[0]


def test_system_messages_inside_the_conversation_reach_the_prompt() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "First."}, {"type": "text", "text": " Second."}]},
        {"role": "system", "content": "SENTINEL-1"},
        {"role": "assistant", "content": "Good."},
        {"role": "user", "content": [{"type": "mid_conv_system", "content": "SENTINEL-2"}]},
        {"role": "system", "content": [{"type": "text", "text": "SENTINEL-3", "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": "Go."},
    ]
    with scripted("Yes.") as (server, model), client_of(server) as client:
        client.messages.create(**{**ASK, "messages": messages})
    (prompt,) = model.prompts
    assert "]~b]user\nFirst. Second.[e~[" in prompt
    places = [prompt.index(f"SENTINEL-{i}") for i in (1, 2, 3)]
    assert places == sorted(places)


def test_what_real_clients_send_beside_is_accepted() -> None:
    body = {
        **ASK,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        "metadata": {"user_id": "u"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "thinking": {"type": "adaptive", "display": "omitted"},
        "mcp_servers": [],
        "container": None,
        "service_tier": "auto",
        "no_such_field": {"deep": [1]},
        "tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}, WEATHER],
        "top_k": 5,
        "top_p": 0.9,
    }
    headers = {"anthropic-beta": "context-1m-2025-08-07,whatever", "authorization": "Bearer x", "x-api-key": "y"}
    with scripted("Fine.") as (server, model):
        for version in ("2023-06-01", "2026-10-21"):
            for path in ("/v1/messages", "/anthropic/v1/messages"):
                answer = httpx.post(
                    f"{server.url}{path}?beta=true", json=body, headers={**headers, "anthropic-version": version}
                )
                assert answer.status_code == 200, answer.text
        assert "web_search" not in model.prompts[0]
        assert '"name": "weather"' in model.prompts[0]
        del body["max_tokens"]
        assert httpx.post(f"{server.url}/v1/messages", json=body).status_code == 200
        for path in ("/", "/anthropic"):
            assert httpx.head(f"{server.url}{path}").status_code == 200


@pytest.mark.parametrize("auth", [{"api_key": "k"}, {"auth_token": "t"}])
def test_either_kind_of_key_is_accepted_where_none_is_asked_for(auth: dict[str, str]) -> None:
    with scripted("Yes.") as (server, _), client_of(server, **{"api_key": None, **auth}) as client:
        assert client.messages.create(**ASK).stop_reason == "end_turn"


def test_keys_where_they_are_asked_for() -> None:
    with scripted("Yes.", authenticator=StaticKey("right")) as (server, _):
        both: dict[str, Any] = {"api_key": None, "auth_token": "right", "default_headers": {"x-api-key": "wrong"}}
        for auth in ({"api_key": "right"}, both):
            with client_of(server, **auth) as client:
                assert client.messages.create(**ASK).stop_reason == "end_turn"
        with client_of(server, api_key="wrong") as client, pytest.raises(anthropic.AuthenticationError) as caught:
            client.messages.create(**ASK)
        assert caught.value.type == "authentication_error"
        assert httpx.head(f"{server.url}/anthropic").status_code == 200
        assert httpx.get(f"{server.url}/anthropic/v1/models").status_code == 401


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
RESULT = {"type": "tool_result", "tool_use_id": "nobody", "content": "x"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"messages": []}, "messages is empty"),
        ({"messages": ["hi"]}, 'messages.0 is "hi"; it must be an object'),
        ({"messages": [{"role": "tool", "content": "x"}]}, 'messages.0.role is "tool"; it must be one of user, assist'),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content is 5; it must be a string or a list"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "see"}, IMAGE]}]},
            "messages.0.content.1 is of type image; the model on this server reads text only",
        ),
        (
            {"messages": [{"role": "user", "content": [{**RESULT, "content": [IMAGE]}]}]},
            "messages.0.content.0.content.0 is of type image",
        ),
        ({"messages": [{"role": "user", "content": [RESULT]}]}, "messages.0.content.0 answers 'nobody', but"),
        ({"messages": [{"role": "user", "content": [{"type": "riddle"}]}]}, 'messages.0.content.0 is of type "riddle"'),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text is null"),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": "{}"}]}
                ]
            },
            'messages.0.content.0.input is "{}"; it must be a JSON object',
        ),
        ({"system": 7}, "system"),
        ({"max_tokens": -1}, "max_tokens is -1; it must be an integer of at least 1"),
        ({"max_tokens": "9"}, 'max_tokens is "9"'),
        ({"temperature": 3}, "temperature is 3.0; it must be a number from 0 to 2"),
        ({"stop_sequences": [""]}, "stop_sequences is 0 characters long"),
        ({"thinking": {"type": "sometimes"}}, 'thinking.type is "sometimes"; it must be one of adaptive, enabled, dis'),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema is null; it must be a JSON schema"),
        ({"tools": [{**WEATHER, "strict": 1}]}, "tools.0.strict is 1; it must be true or false"),
        ({"tools": [{**WEATHER, "name": "a b"}]}, "tools.0.name is 'a b'"),
        ({"tool_choice": {"type": "any"}}, "tool_choice asks for a call, but no tools are declared"),
        ({"tool_choice": {"type": "perhaps"}}, 'tool_choice.type is "perhaps"; it must be one of auto, any, tool'),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "g"}},
            'tool_choice names the tool "g"; declared are weather',
        ),
        (
            {"output_format": {"type": "json_schema", "schema": {"type": "riddle"}}},
            "output_format: the JSON schema: Invalid type: riddle",
        ),
        ({"output_config": {"format": {"type": "xml"}}}, 'output_config.format.type is "xml"; it must be json_schema'),
    ],
)
def test_bad_values_are_named(server: LiveServer, change: dict[str, Any], words: str) -> None:
    with client_of(server) as client, pytest.raises(anthropic.BadRequestError) as caught:
        client.post("/v1/messages", body={**ASK, **change}, cast_to=object)
    body = caught.value.body
    assert isinstance(body, dict)
    assert set(body) == {"type", "request_id", "error"}
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert words in body["error"]["message"]
    assert body["request_id"] == caught.value.request_id
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_errors_have_the_protocols_types(server: LiveServer) -> None:
    with client_of(server) as client:
        with pytest.raises(anthropic.NotFoundError, match="'claude' does not exist") as caught:
            client.messages.create(**{**ASK, "model": "claude"})
        assert caught.value.type == "not_found_error"
        with pytest.raises(anthropic.NotFoundError):
            client.messages.count_tokens(model="claude", messages=ASK["messages"])
    broken = httpx.post(f"{server.url}/v1/messages", content=b"{")
    assert (broken.status_code, broken.json()["error"]["type"]) == (400, "invalid_request_error")


def test_an_overflow_is_told_in_the_words_that_agents_look_for(server: LiveServer) -> None:
    limit = server.engine.max_model_len
    with client_of(server) as client:
        for text, answer, words in (
            ("x" * 2000, 9, f"prompt is too long: 2000 tokens > {limit} maximum"),
            ("x" * 1000, 100, f"input length and `max_tokens` exceed context limit: 1000 + 100 > {limit}"),
        ):
            with pytest.raises(anthropic.BadRequestError) as caught:
                client.messages.create(model="tiny", max_tokens=answer, messages=[{"role": "user", "content": text}])
            assert isinstance(caught.value.body, dict)
            assert caught.value.body["error"]["message"] == words


def test_an_error_under_way_is_the_streams_last_event() -> None:
    failing = threading.Event()

    def before(tokens: list[int]) -> None:
        if len(tokens) == 1 and failing.is_set():
            raise RuntimeError("the network is gone")

    def script(prompt: str) -> str:
        failing.set()
        return "Never said to the end."

    model = ScriptedModel(script, before=before)
    with live_server(model, template=None, pages=256, chunk_tokens=512, defaults=GREEDY) as server:
        events = events_of(server, ASK)
        assert events[0]["type"] == "message_start"
        assert events[-1]["type"] == "error"
        assert events[-1]["error"]["type"] == "api_error"
        assert events[-1]["request_id"].startswith("req_")
        with client_of(server) as client:
            stream = client.messages.create(**ASK, stream=True)
            with pytest.raises(anthropic.APIStatusError, match="the network is gone"):
                list(stream)


def test_a_silent_stream_is_kept_alive_by_pings() -> None:
    """A prompt that takes many steps to read is no news to this protocol, so they do not put off the ping.

    Nor does a stream end when the client's patience with silence is over.
    """
    model = ScriptedModel(lambda _: "Read.", seconds=0.03)
    with live_server(model, template=None, pages=256, chunk_tokens=32, defaults=GREEDY, keep_alive=0.1) as server:
        events = events_of(server, ASK, **{"x-stainless-timeout": "0.2"})
    names = [event["type"] for event in events]
    assert names[0] == "message_start"
    assert names[: names.index("content_block_start")].count("ping") >= 3
    assert names[-1] == "message_stop"


def test_models(server: LiveServer) -> None:
    with client_of(server) as client:
        (model,) = client.models.list()
        assert (model.type, model.id, model.display_name) == ("model", "tiny", "tiny")
        assert client.models.retrieve("tiny") == model
        with pytest.raises(anthropic.NotFoundError):
            client.models.retrieve("other")
    shared = f"{server.url}/v1/models"
    listed = httpx.get(shared, headers={"anthropic-version": "2023-06-01"}).json()
    assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (False, "tiny", "tiny")
    assert httpx.get(f"{shared}/tiny", headers={"anthropic-version": "2023-06-01"}).json() == listed["data"][0]
    assert httpx.get(shared).json()["object"] == "list"


def test_other_names_of_the_model() -> None:
    with scripted("Me.", aliases=("claude-tiny",)) as (server, _), client_of(server) as client:
        assert [model.id for model in client.models.list()] == ["tiny", "claude-tiny"]
        assert client.messages.create(**{**ASK, "model": "claude-tiny"}).model == "claude-tiny"


def test_no_call_where_none_is_wanted() -> None:
    with scripted("So." + calls(("weather", {"place": "Oslo"}))) as (server, _), client_of(server) as client:
        answer = client.messages.create(**ASK, tools=[WEATHER], tool_choice={"type": "none"})
    assert ([block.type for block in answer.content], answer.stop_reason) == (["text"], "end_turn")


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ({"type": "any"}, {"weather", "time"}),
        ({"type": "tool", "name": "time"}, {"time"}),
        ({"type": "any", "disable_parallel_tool_use": True}, {"weather", "time"}),
    ],
)
def test_calls_that_must_be_made(choice: dict[str, Any], names: set[str]) -> None:
    """Whatever the network says: a stand-in that knows no markup is held to it."""
    no_arguments = {"type": "object", "properties": {}, "additionalProperties": False}
    tools = [{"name": name, "input_schema": no_arguments} for name in ("weather", "time")]
    with live_server(FakeModel(), template=None, pages=512) as server, client_of(server) as client:
        answer = client.messages.create(**ASK, tools=tools, tool_choice=choice)
    uses = [block for block in answer.content if block.type == "tool_use"]
    assert answer.stop_reason == "tool_use"
    assert names.issuperset(use.name for use in uses)
    assert all(use.input == {} for use in uses)
    assert len(uses) == 1 if "disable_parallel_tool_use" in choice else uses


def test_a_strict_tool_is_held_to_its_schema() -> None:
    with (
        scripted("So." + calls(("weather", {"place": "Oslo", "days": "few"}))) as (server, _),
        client_of(server) as client,
    ):
        for strict in (True, False):
            text, use = client.messages.create(**ASK, tools=[{**WEATHER, "strict": strict}]).content
            assert (text.type, use.type) == ("text", "tool_use")
            assert use.input["place"] == "Oslo"
            assert (use.input.get("days") == "few") is not strict


@pytest.mark.parametrize("place", ["output_config", "output_format"])
def test_answers_of_a_schema(place: str) -> None:
    schema = {
        "type": "object",
        "properties": {"place": {"enum": ["Oslo"]}, "sure": {"type": "boolean"}},
        "required": ["place", "sure"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "schema": schema}
    with live_server(FakeModel(), template=None, pages=256) as server, client_of(server) as client:
        body = {place: {"format": wanted} if place == "output_config" else wanted}
        answer = client.messages.create(**ASK, extra_body=body)
        assert answer.content[0].type == "text"
        found = json.loads(answer.content[0].text)
    assert (list(found), found["place"], type(found["sure"])) == (["place", "sure"], "Oslo", bool)


def test_the_record_of_what_was_used() -> None:
    records: list[UsageRecord] = []
    with scripted("All is well.", observers=[records.append]) as (server, _), client_of(server) as client:
        usage = client.messages.create(**ASK).usage
        with client.messages.stream(**ASK) as stream:
            stream.until_done()
    first, second = records
    assert (first.dialect, first.endpoint, first.status) == ("anthropic", "/anthropic/v1/messages", "ok")
    assert first.prompt_tokens - first.cached_tokens == usage.input_tokens
    assert (second.completion_tokens, second.status) == (usage.output_tokens, "ok")


def test_the_example_in_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    section = (Path(__file__).parents[1] / "docs" / "clients.md").read_text().split("## The anthropic SDK")[1]
    example = section.split("```python\n")[1].split("```")[0]
    with scripted("It maps addresses.", aliases=("longsight",)) as (server, _):
        names: dict[str, Any] = {}
        exec(example.replace("http://127.0.0.1:8000", server.url), names)
        names["client"].close()  # the example leaves that to the end of the program
    assert capsys.readouterr().out == "It maps addresses."


def test_a_client_that_leaves_frees_its_pages() -> None:
    with scripted("x" * 4000, chunk_tokens=512) as (server, _), client_of(server) as client:
        with client.messages.stream(**{**ASK, "max_tokens": 4000}) as stream:
            next(iter(stream.text_stream))
        server.wait_until_idle()
