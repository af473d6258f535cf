"""Sampling parameters over HTTP: each reaches the engine, and what it reports comes back in the protocol's form."""

from __future__ import annotations

import json
import math
import threading
from typing import Any

import openai
import pytest

from fake_model import EOS, ByteTokenizer, FakeModel, expected_output
from live_server import LiveServer, live_server

TEXT = "The launch code is 7431-KLM. The weather was fine all week. And so the launch code is"
ANSWER = " 7431-KLM. The weather"


class Flat(FakeModel):
    """Likes its token only a little better than the others."""

    def forward(self, *args: Any, **options: Any) -> Any:
        return super().forward(*args, **options) * 0.6


def complete(server: LiveServer, **options: Any) -> Any:
    with server.client() as client:
        return client.completions.create(
            model="tiny", **{"prompt": TEXT, "temperature": 0, "max_tokens": 12, **options}
        )


def test_several_answers_to_one_prompt_read_it_once() -> None:
    with live_server(Flat(), max_queue=20) as server, server.client() as client:
        options: dict[str, Any] = {"max_tokens": 8, "seed": 5, "extra_body": {"ignore_eos": True}}
        many = client.completions.create(model="tiny", prompt=[TEXT, TEXT[7:]], n=3, **options)
        assert [c.index for c in many.choices] == list(range(6))
        texts = [c.text for c in many.choices]
        assert len(set(texts)) > 3
        # Answer i of a prompt is the one of seed + i.
        alone = client.completions.create(model="tiny", prompt=TEXT, **{**options, "seed": 7})
        assert alone.choices[0].text == texts[2]
        assert many.usage is not None
        assert many.usage.prompt_tokens == 2 * len(TEXT) - 7
        assert many.usage.completion_tokens == 48
        streamed = [""] * 6
        for chunk in client.completions.create(model="tiny", prompt=[TEXT, TEXT[7:]], n=3, stream=True, **options):
            for choice in chunk.choices:
                streamed[choice.index] += choice.text
        assert streamed == texts


def test_too_many_answers(server: LiveServer) -> None:
    with pytest.raises(openai.BadRequestError, match="2 prompts with n 65 ask for more than 128 answers"):
        complete(server, prompt=["a", "b"], n=65, max_tokens=1)


def test_chat_logprobs(server: LiveServer) -> None:
    options: dict[str, Any] = {
        "messages": [{"role": "user", "content": TEXT}],
        "max_tokens": len(ANSWER),
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
    }
    with server.client() as client:
        (choice,) = client.chat.completions.create(model="tiny", **options).choices
        chunks = list(client.chat.completions.create(model="tiny", stream=True, **options))
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert "".join(entry.token for entry in choice.logprobs.content) == ANSWER
    # One logit is 5, the other 250 are 0: the likeliest, then the lowest id.
    best = 5 - math.log(math.exp(5) + 250)
    for entry, character in zip(choice.logprobs.content, ANSWER, strict=True):
        assert entry.logprob == pytest.approx(best, abs=1e-6)
        assert entry.bytes == [ord(character)]
        assert [(t.token, t.bytes) for t in entry.top_logprobs] == [(character, [ord(character)]), ("\0", [0])]
        assert entry.top_logprobs[1].logprob == pytest.approx(best - 5, abs=1e-6)
    streamed = [e for c in chunks for e in (c.choices[0].logprobs.content if c.choices[0].logprobs else [])]
    assert streamed == choice.logprobs.content


def test_text_logprobs(server: LiveServer) -> None:
    (choice,) = complete(server, logprobs=1).choices
    found = choice.logprobs
    assert found.tokens == list(ANSWER[:12])
    assert found.text_offset == list(range(12))
    assert [list(top) for top in found.top_logprobs] == [[c] for c in ANSWER[:12]]
    assert [top[c] for top, c in zip(found.top_logprobs, ANSWER, strict=False)] == found.token_logprobs
    with server.client() as client:
        chunks = list(
            client.completions.create(model="tiny", prompt=TEXT, temperature=0, max_tokens=12, logprobs=1, stream=True)
        )
    pieces = [c.choices[0].logprobs for c in chunks if c.choices[0].logprobs]
    assert [t for p in pieces for t in p.tokens] == found.tokens
    assert [t for p in pieces for t in p.text_offset] == found.text_offset
    assert complete(server, logprobs=0).choices[0].logprobs.top_logprobs == [{}] * 12
    assert complete(server).choices[0].logprobs is None


def test_the_end_of_an_answer_is_no_part_of_it(server: LiveServer) -> None:
    (choice,) = complete(server, prompt="abc", logprobs=1).choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == ("", "stop", None)


def test_a_character_in_pieces_has_its_logprobs(server: LiveServer) -> None:
    text = " caf\u00e9 noir. lorem ipsum caf"
    with server.client() as client:
        chunks = list(
            client.completions.create(model="tiny", prompt=text, temperature=0, max_tokens=4, logprobs=0, stream=True)
        )
    assert "".join(c.choices[0].text for c in chunks) == "\u00e9 n"
    assert sum(len(c.choices[0].logprobs.tokens) for c in chunks if c.choices[0].logprobs) == 4


def test_biases_and_stop_tokens(server: LiveServer) -> None:
    assert complete(server, logit_bias={str(ord("x")): 100}, max_tokens=3).choices[0].text == "xxx"
    banned = complete(server, logit_bias={str(ord(" ")): -100}, max_tokens=1).choices[0].text
    assert banned != " "
    stopped = complete(server, extra_body={"stop_token_ids": [ord("-")]}).choices[0]
    assert (stopped.text, stopped.finish_reason) == (" 7431", "stop")
    kept = complete(server, prompt="abc", extra_body={"min_tokens": 3}).choices[0]
    assert len(kept.text) >= 3


def test_penalties() -> None:
    with live_server(Flat()) as server:  # its token has logit 3, "y" 2 by the bias, the others 0
        options: dict[str, Any] = {"max_tokens": 60, "logit_bias": {str(ord("y")): 2}}
        plain = complete(server, **options, extra_body={"ignore_eos": True}).choices[0].text
        for name, value in (("presence_penalty", 2), ("frequency_penalty", 2), ("repetition_penalty", 50.0)):
            text = complete(server, **options, extra_body={"ignore_eos": True, name: value}).choices[0].text
            assert text != plain, name


SCHEMA = {
    "type": "object",
    "properties": {"zeta": {"enum": ["on", "off"]}, "alpha": {"type": "boolean"}},
    "required": ["zeta", "alpha"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [False, True])
def test_structured_answers(stream: bool) -> None:
    with live_server() as server, server.client() as client:
        options: dict[str, Any] = {
            "model": "tiny",
            "messages": [{"role": "user", "content": TEXT}],
            "max_tokens": 60,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}},
        }
        if stream:
            chunks = client.chat.completions.create(stream=True, **options)
            text = "".join(c.choices[0].delta.content or "" for c in chunks)
        else:
            text = client.chat.completions.create(**options).choices[0].message.content or ""
    value = json.loads(text)
    assert list(value) == ["zeta", "alpha"]  # in the schema's order
    assert value["zeta"] in ("on", "off")


def test_a_slow_grammar_holds_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with live_server() as server:
        grammars = server.engine.grammars
        assert grammars is not None
        compiling, go_on = threading.Event(), threading.Event()
        compile_one = grammars.matcher

        def slowly(grammar: Any) -> Any:
            compiling.set()
            assert go_on.wait(10)
            return compile_one(grammar)

        monkeypatch.setattr(grammars, "matcher", slowly)
        options = {"max_tokens": 40, "extra_body": {"response_format": {"type": "json_object"}}}
        thread = threading.Thread(target=lambda: complete(server, **options))
        thread.start()
        try:
            assert compiling.wait(10)
            assert complete(server).choices[0].text == ANSWER[:12]
        finally:
            go_on.set()
            thread.join(10)


def test_the_engine_behind_is_the_real_one() -> None:
    with live_server(FakeModel()) as server:
        answer = complete(server, max_tokens=20, logprobs=0).choices[0]
    tokens = expected_output(TEXT.encode(), 20)
    assert EOS not in tokens
    assert answer.text == ByteTokenizer().decode(tokens)
