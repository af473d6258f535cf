"""The Python API, over the constructed model: it continues the best earlier match, so right answers are known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from longsight import LLM, Grammar, SamplingParams
from longsight.engine import InvalidRequestError

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


def test_wrong_requests_run_nothing(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="2 prompts came with 1"):
        llm.generate(["a", "b"], [GREEDY])
    with pytest.raises(InvalidRequestError, match="empty"):
        llm.generate([PROMPT, ""], GREEDY)
    with pytest.raises(InvalidRequestError, match="n is 0"):
        SamplingParams(n=0)
    with pytest.raises(InvalidRequestError, match="vocabulary"):
        llm.generate([[1, 10**6]], GREEDY)
