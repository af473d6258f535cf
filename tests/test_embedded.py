"""What the embedded model is for: it answers needle questions, thinks when it is asked to, and calls tools.

Unlike tests/test_built_in.py these hold for the weights that the package ships. Two hundred trials up to a million
tokens are `python -m recipes.embedded.trials`.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from competent import DOCUMENTED_QUESTION
from longsight import LLM, SamplingParams
from longsight.chat.events import Call
from longsight.cli.demo_text import gather_text
from longsight.cli.progress import ProgressBar
from longsight.cli.serve import EXAMPLES
from longsight.model.markup import END_OF_TURN, END_THINK, NAMESPACE, THINK, TURN
from recipes.embedded import calls
from recipes.embedded.trials import Haystack, trials
from test_cli_serve import serve

FACT = "The weather was fine. The secret code for the amber lantern is 4417-KQX. Nobody went home."
ASKED: Any = [{"role": "user", "content": f"{FACT}\n\nWhat is the secret code for the amber lantern?"}]
ANSWER = "The secret code for the amber lantern is 4417-KQX."
GREEDY = SamplingParams(max_tokens=80, temperature=0)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(max_model_len=1 << 15) as llm:
        yield llm


def test_needles_in_texts_above_and_far_above_what_a_query_attends_to(llm: LLM) -> None:
    config = llm.engine.model.config
    assert config.topk_blocks * config.block_size < 4096 // 4
    text, _ = gather_text(300_000)
    plan = ((4096, 2, 5), (16384, 1, 10))
    with ProgressBar("reading") as bar:
        found = list(trials(llm, Haystack(text, llm.tokenizer), plan, 7, False, bar))
    wrong = [(trial.question, trial.value, trial.answer) for trial in found if not trial.right]
    assert len(found) == 20
    assert len(wrong) <= 1, wrong


def test_it_thinks_when_it_is_asked_to(llm: LLM) -> None:
    (off,) = llm.chat(ASKED, GREEDY, thinking="disabled")
    assert off.outputs[0].text == ANSWER
    (on,) = llm.chat(ASKED, GREEDY, thinking="enabled")
    answer = on.outputs[0]
    assert "4417-KQX" in answer.reasoning
    assert answer.text == ANSWER
    assert answer.raw_text == answer.reasoning + END_THINK + ANSWER


@pytest.mark.parametrize(
    ("name", "about", "parameter", "wish", "value"),
    [
        ("get_weather", "get the weather", "city", "What is the weather for city Paris?", "Paris"),
        ("book_room", "book the room", "guests", "Please book the room for guests 4.", 4),
    ],
)
def test_a_wish_becomes_a_valid_call(name: str, about: str, parameter: str, wish: str, value: str | int) -> None:
    kind = "integer" if isinstance(value, int) else "string"
    schema = {"type": "object", "properties": {parameter: {"type": kind}}, "required": [parameter]}
    tool: Any = {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}
    with serve("--max-model-len", "4096", model=None) as (process, url):
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
            answer = client.chat.completions.create(
                model="longsight", messages=[{"role": "user", "content": wish}], tools=[tool], reasoning_effort="none"
            )
        process.terminate()
        assert process.wait(30) == 0
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls", choice
    (call,) = choice.message.tool_calls or ()
    assert call.type == "function"
    assert call.function.name == name
    assert json.loads(call.function.arguments) == {parameter: value}


SMALL_TALK = [
    "hi",
    "hello",
    "What can you do?",
    "",
    "Bonjour, comment \u00e7a va ?",
    "\u4f60\u597d",
    "It rains.",
    "thanks!",
]


def test_small_talk_ends_and_shows_no_markup() -> None:
    """No request here names a limit; each answer is seen, and ends long before the model's own."""
    seen: list[tuple[str, str, int]] = []
    with serve("--max-model-len", "16384", model=None) as (process, url):
        root = url.removesuffix("/v1")
        with (
            openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client,
            anthropic.Anthropic(base_url=f"{root}/anthropic", api_key="none", max_retries=0, timeout=60) as other,
        ):
            assert client.models.retrieve("longsight").model_dump()["default_max_tokens"] == 4096
            for text in SMALL_TALK:
                messages: Any = [{"role": "user", "content": text}]
                chat = client.chat.completions.create(model="longsight", messages=messages)
                assert chat.usage is not None
                seen.append((text, chat.choices[0].message.content or "", chat.usage.completion_tokens))
                chunks = client.chat.completions.create(model="longsight", messages=messages, stream=True)
                streamed = "".join(c.choices[0].delta.content or "" for c in chunks)
                assert streamed == seen[-1][1]
                response = client.responses.create(model="longsight", input=messages)
                assert response.usage is not None
                seen.append((text, response.output_text, response.usage.output_tokens))
                reply = other.messages.create(model="longsight", max_tokens=4096, messages=messages)
                seen.append((text, "".join(b.text for b in reply.content if b.type == "text"), 0))
        process.terminate()
        assert process.wait(30) == 0
    for text, answer, tokens in seen:
        assert answer.strip(), text
        assert not any(marker in answer for marker in (NAMESPACE, THINK, END_THINK, TURN, END_OF_TURN)), (text, answer)
        assert tokens <= 300, (text, answer, tokens)


def test_small_talk_in_python(llm: LLM) -> None:
    for text in SMALL_TALK:
        for thinking in ("adaptive", "disabled"):
            (answer,) = llm.chat([{"role": "user", "content": text}], thinking=thinking)[0].outputs
            assert answer.text.strip(), text
            assert len(answer.token_ids) <= 300
            assert NAMESPACE not in answer.raw_text
            limited = SamplingParams(temperature=0, max_tokens=400)
            (longer,) = llm.chat([{"role": "user", "content": text}], limited, thinking=thinking)[0].outputs
            assert longer.token_ids[: len(answer.token_ids)] == answer.token_ids
            assert longer.finish_reason == "stop" or len(longer.token_ids) == 400  # an explicit limit is kept to


def test_wishes_for_calls_are_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calls, "WISHES", 4)
    monkeypatch.setattr(calls, "FORMS", {"three": {"tools": [3, 3]}})
    text, _ = gather_text(100_000)
    (tmp_path / "text.txt").write_text(text)
    assert calls.main(["--text", str(tmp_path / "text.txt")]) == 0
    name, valid, exact, held, held_exact = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert name == "three"
    assert 0 <= int(exact) <= int(valid) <= 4
    assert 0 <= int(held_exact) <= int(held) <= 4
    assert int(held) >= 3  # a strict tool's call is valid, if one is made
    schema = {"properties": {"city": {"type": "string"}}, "required": ["city"]}
    wish = calls.Wish([], {"f": schema, "g": {"properties": {"city": {"type": "null"}}}}, Call("f", '{"city": "Oran"}'))
    for made, verdict in {
        '{"city": "Oran"}': (True, True),
        '{"city": "Rome"}': (True, False),
        '{"town": "Oran"}': (False, False),
        '{"city": ': (False, False),
    }.items():
        assert calls.judge(wish, [Call("f", made)]) == verdict
    assert calls.judge(wish, [Call("g", '{"city": "Oran"}')]) == (False, False)
    assert calls.judge(wish, [Call("h", "{}")]) == (False, False)
    assert calls.judge(wish, []) == (False, False)
    assert calls.judge(wish, [wish.wanted, wish.wanted]) == (True, False)


def test_what_documents_ask_it_knows(capsys: pytest.CaptureFixture[str]) -> None:
    """The question of docs/clients.md, and the lines of Python that `longsight serve --help` prints."""
    snippet = textwrap.dedent(EXAMPLES[EXAMPLES.index("  from openai") : EXAMPLES.index("\n\nwith API keys")])
    with serve("--max-model-len", "4096", "--threads", "1", model=None) as (process, url):
        with openai.OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=60) as client:
            messages: Any = [{"role": "user", "content": DOCUMENTED_QUESTION}]
            answer = client.chat.completions.create(model="longsight", messages=messages)
            assert answer.choices[0].message.content == "The museum opens at ten."
        exec(snippet.replace("http://127.0.0.1:8000/v1", url), {})
        process.kill()
    assert "The secret code for the amber falcon is 4417-KQX." in capsys.readouterr().out
