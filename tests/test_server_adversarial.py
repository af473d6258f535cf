"""Bodies that nobody should send: every one is answered, none with a 5xx, and the server goes on.

Ten thousand requests through the whole application (LONGSIGHT_ADVERSARIAL_CASES says how many), in process, over the
real engine and a stand-in network.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import random
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from fake_model import ByteTokenizer, ScriptedModel, byte_grammars
from longsight.engine import Engine, EngineDriver
from longsight.server.app import create_app
from longsight.server.service import Service

CASES = int(os.environ.get("LONGSIGHT_ADVERSARIAL_CASES", "10000"))
AT_ONCE = 16
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {"type": "integer"}}},
}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": "x"}'}}

CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
        {"role": "assistant", "content": None, "reasoning_content": "r", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "result"},
        {"role": "user", "content": "and?"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}],
    "tool_choice": "auto",
    "max_completion_tokens": 4,
    "temperature": 0.5,
    "top_p": 0.9,
    "n": 1,
    "stop": ["x"],
    "seed": 1,
    "logit_bias": {"5": 1.0},
    "logprobs": True,
    "top_logprobs": 2,
    "thinking": {"type": "adaptive"},
    "reasoning_split": True,
    "chat_template_kwargs": {"model_identity": "me"},
    "stream": False,
    "stream_options": {"include_usage": True},
    "service_tier": "priority",
}
TEXT: dict[str, Any] = {
    "model": "tiny",
    "prompt": ["a", [1, 2, 3]],
    "max_tokens": 3,
    "logprobs": 1,
    "stop": "z",
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
    "repetition_penalty": 1.1,
    "min_tokens": 1,
    "stream": True,
}
RESPONSES: dict[str, Any] = {
    "model": "tiny",
    "instructions": "i",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "r"}],
            "encrypted_content": "e",
        },
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "said"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": "x"}'},
        {"type": "custom_tool_call", "call_id": "c2", "name": "g", "input": "x"},
        {"type": "function_call_output", "call_id": "c1", "output": "result"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "t"}]},
    ],
    "tools": [
        {"type": "function", "name": "f", "description": "d", "parameters": SCHEMA},
        {"type": "custom", "name": "g", "format": {"type": "grammar", "syntax": "lark", "definition": "start: /x/"}},
        {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "h"}]},
        {"type": "web_search"},
    ],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["reasoning.encrypted_content"],
    "text": {"format": {"type": "text"}, "verbosity": "low"},
    "metadata": {"a": "b"},
    "max_output_tokens": 4,
    "parallel_tool_calls": True,
    "store": True,
    "stream": True,
}
MESSAGES: dict[str, Any] = {
    "model": "tiny",
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": "hello"},
        {"role": "system", "content": "late"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "r", "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "t"},
                {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": "x"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "r"}]},
                {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "d"}},
                {"type": "mid_conv_system", "content": "m"},
            ],
        },
    ],
    "tools": [{"name": "f", "description": "d", "input_schema": SCHEMA}, {"type": "web_search_20250305", "name": "w"}],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "max_tokens": 4,
    "temperature": 0.5,
    "top_k": 5,
    "stop_sequences": ["x"],
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": SCHEMA}},
    "stream": True,
}
BODIES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": TEXT,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    "/anthropic/v1/messages/count_tokens": MESSAGES,
}

ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**70),
    0.5,
    1e308,
    "",
    "x",
    "\x00",
    "\ud800",
    "\ue000ff\ue001",
    "]~b]system\n",
    "]<]minimax[>[<tool_call>",
    "a" * 3000,
    [],
    {},
    [[]],
    {"": {}},
    ["x"] * 50,
    {"type": "text"},
    {"type": "function"},
    {"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}},
    {"$ref": "#"},
    "required",
    {"type": "function", "function": {"name": "f"}},
]


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(p for key, v in inner for p in paths(v, (*at, key)))]


def broken(body: dict[str, Any], rng: random.Random) -> Any:
    """A valid body with a few places replaced, dropped, doubled or nested."""
    body = copy.deepcopy(body)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        *way, last = rng.choice(paths(body)[1:])
        place = body
        for key in way:
            place = place[key]
        match rng.randrange(6):
            case 0:
                del place[last]
            case 1:
                place[last] = [place[last]] * rng.choice([1, 2, 40])
            case 2:
                place[last] = {rng.choice(["type", "x", "content"]): place[last]}
            case 3 if isinstance(place, dict):
                place[rng.choice(["__proto__", "extra", "messages", "prompt", "n", "echo"])] = copy.deepcopy(
                    rng.choice(ODD)
                )
            case _:
                place[last] = copy.deepcopy(rng.choice(ODD))
    return body


def raw(body: Any, rng: random.Random) -> bytes:
    text = json.dumps(body).encode()
    match rng.randrange(40):
        case 0:
            return text[: rng.randrange(len(text))]
        case 1:
            return text.replace(b'"', b"'", rng.randrange(5))
        case 2:
            return b"[" * 50_000 + text
        case 3:
            return text.replace(b":", b":\xff", 1)
        case 4:
            return text.replace(b"{", b'{"a": NaN, ', 1)
    return text


@pytest.mark.timeout(240)
def test_no_body_gives_a_500() -> None:
    calls = '<think>x</think>]<]minimax[>[<tool_call>]<]minimax[>[<invoke name="f">'
    script: Callable[[str], str] = lambda prompt: calls if len(prompt) % 2 else "plain"  # noqa: E731
    model = ScriptedModel(script, context=16_384)
    tokenizer = ByteTokenizer()
    engine = Engine(
        model,  # type: ignore[arg-type]
        tokenizer,
        kv_bytes=4096 * model.config.page_bytes(),
        chunk_tokens=4096,
        grammars=byte_grammars(),
    )
    driver = EngineDriver(engine, max_queue=1 << 20)
    # Answers that name no length are short here: it is not their length that is tried.
    app = create_app(Service(driver, tokenizer, "tiny", None, chat_max_tokens=4))
    counts: dict[int, int] = {}

    async def worker(client: httpx.AsyncClient, seeds: range) -> None:
        for seed in seeds:
            rng = random.Random(seed)
            path = rng.choice(list(BODIES))
            body = broken(BODIES[path], rng)
            if isinstance(body, dict):  # nor do long ones belong here
                for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
                    if isinstance(body.get(name), int) and not isinstance(body.get(name), bool) and body[name] > 64:
                        body[name] = 64
            response = await client.post(path, content=raw(body, rng))
            counts[response.status_code] = counts.get(response.status_code, 0) + 1
            assert response.status_code < 500, (seed, response.text, body)
            if response.status_code >= 400:
                error = response.json()["error"]
                assert error["message"], seed
                assert error["type"] in ("invalid_request_error", "not_found_error"), (seed, error)
            elif "text/event-stream" in response.headers["content-type"]:
                ended = "data: [DONE]" in response.text[-20:]
                if path == "/v1/responses":
                    last = json.loads(response.text.removesuffix("\n\n").rsplit("\ndata: ", 1)[1])["type"]
                    ended = last in ("response.completed", "response.incomplete")
                elif path == "/v1/messages":
                    ended = response.text.endswith('data: {"type":"message_stop"}\n\n')
                assert ended, (seed, response.text[-300:], body)

    async def run() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
            await asyncio.gather(*(worker(client, range(i, CASES, AT_ONCE)) for i in range(AT_ONCE)))

    try:
        asyncio.run(run())
    finally:
        driver.close(10)
    assert engine.pages.used == 0
    assert counts[200] > CASES / 20, counts
    assert counts[400] > CASES / 3, counts
