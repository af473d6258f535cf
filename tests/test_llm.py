"""The Python API, over the constructed model: it continues the best earlier match, so right answers are known."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longsight import LLM, CompletionOutput, Grammar, SamplingParams, StreamOutput, ToolCall
from longsight.engine import InvalidRequestError
from test_imports import EXTRAS

TEXT = "The secret code for the amber falcon is 4417-KQX. " + "Nothing else is of any interest here. " * 90
PROMPT = TEXT + "The secret code for the amber falcon is"
GREEDY = SamplingParams(max_tokens=10, temperature=0)


@pytest.fixture(scope="module")
def llm(constructed: Path) -> Iterator[LLM]:
    with LLM(constructed, max_model_len=1 << 15) as llm:
        yield llm
        assert llm.engine.pages.used == 0


def test_one_prompt_or_many_in_order(llm: LLM) -> None:
    (one,) = llm.generate(PROMPT, GREEDY)
    assert one.outputs[0].text == " 4417-KQX."
    assert one.finished
    assert one.prompt == PROMPT
    many = llm.generate(
        [PROMPT, list(one.prompt_token_ids), "xyzw" * 40], [GREEDY, GREEDY, SamplingParams(max_tokens=4)]
    )
    assert [o.outputs[0].text for o in many[:2]] == [" 4417-KQX."] * 2
    assert len(many[2].outputs[0].token_ids) == 4
    assert many[0].num_cached_tokens > 3000
    assert llm.generate([], GREEDY) == []


def test_several_answers_read_the_prompt_once(llm: LLM) -> None:
    (output,) = llm.generate(
        PROMPT, SamplingParams(n=3, max_tokens=5, temperature=1.5, seed=1, logprobs=2), use_tqdm=False
    )
    assert [answer.index for answer in output.outputs] == [0, 1, 2]
    assert all(len(a.token_ids) == 5 and a.logprobs is not None and len(a.logprobs) == 5 for a in output.outputs)
    again = [llm.generate(PROMPT, SamplingParams(max_tokens=5, temperature=1.5, seed=1 + i))[0] for i in range(3)]
    assert [a.token_ids for a in output.outputs] == [o.outputs[0].token_ids for o in again]


def test_streams(llm: LLM) -> None:
    pieces = list(llm.stream(PROMPT, GREEDY))
    assert "".join(p.text for p in pieces) == " 4417-KQX."
    assert [p.finish_reason for p in pieces][-1] == "length"
    for piece in llm.stream(PROMPT, SamplingParams(max_tokens=5000, temperature=0)):
        assert piece.index == 0
        break  # ends the request

    async def both() -> None:
        async def text() -> str:
            return "".join([p.text async for p in llm.astream(PROMPT, GREEDY)])

        streamed, whole = await asyncio.gather(text(), llm.agenerate(PROMPT, GREEDY))
        assert streamed == whole.outputs[0].text == " 4417-KQX."

    asyncio.run(both())


def test_grammars(llm: LLM) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    params = SamplingParams(max_tokens=40, temperature=0, grammar=Grammar("json_schema", json.dumps(schema)))
    (output,) = llm.generate(PROMPT, params)
    assert set(json.loads(output.outputs[0].text)) == {"ok"}
    assert output.outputs[0].finish_reason == "stop"


def test_chat(llm: LLM) -> None:
    (output,) = llm.chat([{"role": "user", "content": TEXT + "What is the secret code for the amber falcon?"}], GREEDY)
    assert len(output.outputs[0].token_ids) > 0


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "get the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
FALCON = "It rained. The secret code for the amber falcon is 4417-KQX. Nobody came."
ASK = [{"role": "user", "content": f"{FALCON}\n\nWhat is the secret code for the amber falcon?"}]
WISH = [{"role": "user", "content": "What is the weather for city Paris?"}]
CODE = "The secret code for the amber falcon is 4417-KQX."
CHATTY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def embedded() -> Iterator[LLM]:
    with LLM(max_model_len=1 << 13) as llm:
        yield llm
        assert llm.engine.pages.used == 0


def whole(pieces: list[StreamOutput]) -> CompletionOutput:
    """What the pieces of one answer come to."""
    calls: dict[int, list[str]] = {}
    for delta in (d for p in pieces for d in p.tool_calls):
        if delta.name is not None:
            calls[delta.index] = [delta.id or "", delta.name, ""]
        calls[delta.index][2] += delta.arguments
    return CompletionOutput(
        0,
        "".join(p.text for p in pieces),
        [t for p in pieces for t in p.token_ids],
        None,
        pieces[-1].finish_reason,
        "".join(p.reasoning for p in pieces),
        [ToolCall(id, name, json.loads(arguments)) for id, name, arguments in calls.values()],
        "".join(p.raw_text for p in pieces),
    )


@pytest.mark.parametrize("thinking", ["adaptive", "enabled", "disabled"])
@pytest.mark.parametrize(("messages", "tools"), [(ASK, None), (WISH, [TOOL])], ids=["text", "call"])
def test_a_chat_is_parsed_whole_and_in_pieces(embedded: LLM, messages: Any, tools: Any, thinking: Any) -> None:
    options: dict[str, Any] = {"tools": tools, "thinking": thinking}
    (answer,) = embedded.chat(messages, CHATTY, **options)[0].outputs

    async def both() -> tuple[CompletionOutput, list[StreamOutput]]:
        alone = await embedded.achat(messages, CHATTY, **options)
        return alone.outputs[0], [p async for p in embedded.achat_stream(messages, CHATTY, **options)]

    again, pieces = asyncio.run(both())
    for other in (again, whole(pieces), whole(list(embedded.chat_stream(messages, CHATTY, **options)))):
        # Each answer's calls have ids of their own.
        ids = [replace(c, id=d.id) for c, d in zip(other.tool_calls, answer.tool_calls, strict=True)]
        assert replace(other, tool_calls=ids) == answer
    assert "mm:think" not in answer.text + answer.reasoning
    assert bool(answer.reasoning) == (thinking == "enabled")
    if tools is None:
        assert (answer.text, answer.finish_reason, answer.tool_calls) == (CODE, "stop", [])
    else:
        assert answer.finish_reason == "tool_calls"
        assert [(c.name, c.arguments) for c in answer.tool_calls] == [("get_weather", {"city": "Paris"})]


def test_a_conversation_goes_on_with_the_answer_as_a_message(embedded: LLM) -> None:
    (answer,) = embedded.chat(WISH, CHATTY, tools=[TOOL], tool_choice="required")[0].outputs
    result = {"role": "tool", "tool_call_id": answer.tool_calls[0].id, "content": "It is 21 degrees."}
    (after,) = embedded.chat([*WISH, answer.to_message(), result], CHATTY, tools=[TOOL])[0].outputs
    assert after.finish_reason == "stop"
    rendered = embedded.tokenizer.decode(embedded.render([*WISH, answer.to_message(), result]))
    assert '<invoke name="get_weather">' in rendered


def test_stop_strings_end_the_visible_text_of_a_chat(embedded: LLM) -> None:
    stop = SamplingParams(temperature=0, stop=("code",))
    (answer,) = embedded.chat(ASK, stop, thinking="enabled")[0].outputs
    assert "code" in answer.reasoning
    assert answer.text == "The secret "
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content is 3"),
        ({"messages": [{"role": "you", "content": ""}]}, 'messages.0.role is "you"; it must be one of'),
        ({"messages": "hi"}, 'messages.0 is "h"; it must be an object'),
        ({"tools": [{"name": "f"}]}, "tools.0 is"),
        ({"tool_choice": "required"}, "no tools are declared"),
        ({"thinking": "hard"}, "thinking is 'hard'; it must be one of adaptive, enabled, disabled"),
        ({"sampling_params": SamplingParams(grammar=Grammar("json_schema", "["))}, "not JSON"),
    ],
)
def test_what_is_wrong_with_a_chat_is_named(embedded: LLM, change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        embedded.chat(**{"messages": ASK, **change})
    with pytest.raises(InvalidRequestError, match=words):
        embedded.chat_stream(**{"messages": ASK, **change})


def test_a_chat_needs_no_extra_but_the_template_language() -> None:
    code = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {set(EXTRAS) - {"jinja2"}!r} or name.startswith("longsight.server"):
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)
sys.meta_path.insert(0, Blocked())
from longsight import LLM, SamplingParams
with LLM(max_model_len=4096) as llm:
    print(llm.chat({ASK!r}, SamplingParams(temperature=0, max_tokens=30))[0].outputs[0].text)
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True)
    assert found.stdout == CODE + "\n"


def test_wrong_requests_run_nothing(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="2 prompts came with 1"):
        llm.generate(["a", "b"], [GREEDY])
    with pytest.raises(InvalidRequestError, match="empty"):
        llm.generate([PROMPT, ""], GREEDY)
    with pytest.raises(InvalidRequestError, match="n is 0"):
        SamplingParams(n=0)
    with pytest.raises(InvalidRequestError, match="vocabulary"):
        llm.generate([[1, 10**6]], GREEDY)
