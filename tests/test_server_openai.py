"""The protocol as the official client sees it, over a real socket."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from fake_model import ByteTokenizer, FakeModel, expected_output
from live_server import LiveServer, live_server
from longsight.chat.format import render
from longsight.chat.messages import ChatMessage

TEXT = "The launch code is 7431-KLM. The weather was fine all week. And so the launch code is"
ANSWER = " 7431-KLM. The weather"
LONG = "lorem ipsum dolor. " * 10 + TEXT  # several chunks, several times top-k blocks


def test_models(server: LiveServer) -> None:
    with server.client() as client:
        (model,) = client.models.list()
        assert (model.id, model.object) == ("tiny", "model")
        assert client.models.retrieve("tiny").id == "tiny"
        with pytest.raises(openai.NotFoundError, match="'no/such' does not exist; this server has 'tiny'") as caught:
            client.models.retrieve("no/such")
        assert caught.value.code == "model_not_found"


def test_other_names_of_the_model() -> None:
    with live_server(aliases=("claude-tiny",)) as server, server.client() as client:
        assert {m.id: m.model_dump()["aliases"] for m in client.models.list()} == {
            "tiny": ["claude-tiny"],
            "claude-tiny": ["tiny"],
        }
        assert client.completions.create(model="claude-tiny", prompt=TEXT, max_tokens=2).model == "claude-tiny"


def test_chat(server: LiveServer) -> None:
    with server.client() as client:
        raw = client.chat.completions.with_raw_response.create(
            model="tiny",
            messages=[{"role": "system", "content": "lorem ipsum."}, {"role": "user", "content": TEXT}],
            max_tokens=len(ANSWER),
            temperature=0,
        )
    assert raw.headers["x-request-id"] == raw.headers["request-id"]
    chat = raw.parse()
    (choice,) = chat.choices
    assert choice.message.content == ANSWER
    assert (choice.message.role, choice.finish_reason, choice.index) == ("assistant", "length", 0)
    assert chat.object == "chat.completion"
    prompt = len("lorem ipsum.\n" + TEXT)
    assert chat.usage is not None
    counted = chat.usage.model_dump(exclude_none=True)
    cached = counted.pop("prompt_tokens_details")["cached_tokens"]
    assert counted.pop("completion_tokens_details") == {"reasoning_tokens": 0}
    assert 0 <= cached < prompt
    assert counted == {
        "prompt_tokens": prompt,
        "completion_tokens": len(ANSWER),
        "total_tokens": prompt + len(ANSWER),
    }


def chat_chunks(server: LiveServer, **options: Any) -> list[Any]:
    with server.client() as client:
        options = {"max_tokens": len(ANSWER), "temperature": 0, **options}
        messages = [{"role": "user", "content": LONG}]
        return list(client.chat.completions.create(model="tiny", messages=messages, stream=True, **options))


def test_chat_stream(server: LiveServer) -> None:
    chunks = chat_chunks(server)
    deltas = [c.choices[0].delta for c in chunks]
    assert deltas[0].role == "assistant"
    assert "".join(d.content or "" for d in deltas) == ANSWER
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["length"]
    assert chunks[-1].choices[0].finish_reason == "length"
    assert len({c.id for c in chunks}) == 1
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert all(c.usage is None for c in chunks)


def test_usage_comes_with_the_last_chunk(server: LiveServer) -> None:
    *chunks, last = chat_chunks(server, stream_options={"include_usage": True})
    assert all(c.usage is None and c.choices for c in chunks)
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(LONG), len(ANSWER))


def test_progress_is_told_on_request(server: LiveServer) -> None:
    chunks = chat_chunks(server, extra_body={"return_progress": True})
    told = [c.prompt_progress for c in chunks if not c.choices]
    total = len(LONG)
    steps = [*range(64, total, 64), total]
    assert told == [{"processed": n, "total": total, "index": 0} for n in steps]
    assert len(steps) > 3


def test_stream_and_whole_agree(server: LiveServer) -> None:
    options: dict[str, Any] = {"max_tokens": 30, "temperature": 1.5, "seed": 11, "stop": ["zz"]}
    chunks = chat_chunks(server, **options)
    with server.client() as client:
        whole = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": LONG}], **options)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_content_parts_are_joined(server: LiveServer) -> None:
    parts = [{"type": "text", "text": TEXT[:20]}, {"type": "text", "text": TEXT[20:]}]
    with server.client() as client:
        chat = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": parts}], max_completion_tokens=6, temperature=0
        )
    assert chat.choices[0].message.content == ANSWER[:6]


def test_an_answer_ends_by_itself(server: LiveServer) -> None:
    with server.client() as client:
        chat = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "abc"}], temperature=0
        )
    assert (chat.choices[0].finish_reason, chat.choices[0].message.content) == ("stop", "")


@pytest.mark.parametrize("stop", [".", ["@@", "KLM", "431-K"], ["-KL", ". The"]])
def test_stop_strings(server: LiveServer, stop: str | list[str]) -> None:
    first = min(ANSWER.find(s) + len(s) for s in ([stop] if isinstance(stop, str) else stop) if s in ANSWER)
    with server.client() as client:
        answer = client.completions.create(model="tiny", prompt=TEXT, max_tokens=99, temperature=0, stop=stop)
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    assert choice.text == ANSWER[: max(ANSWER[:first].rfind(s) for s in stop)]
    assert not any(s in choice.text for s in stop)


def test_completions_of_text_tokens_and_lists(server: LiveServer) -> None:
    tokens = ByteTokenizer().encode(TEXT)
    forms: list[tuple[Any, int]] = [(TEXT, 1), (tokens, 1), ([TEXT], 1), ([TEXT, TEXT[5:]], 2), ([tokens, tokens], 2)]
    with server.client() as client:
        for prompt, count in forms:
            answer = client.completions.create(model="tiny", prompt=prompt, temperature=0)
            assert [c.text for c in answer.choices] == [ANSWER[:16]] * count  # 16: the protocol's default
            assert [c.index for c in answer.choices] == list(range(count))
            assert answer.usage is not None
            assert answer.usage.completion_tokens == 16 * count


def test_a_stream_of_several_prompts(server: LiveServer) -> None:
    texts = ["", "", ""]
    with server.client() as client:
        chunks = client.completions.create(
            model="tiny", prompt=[TEXT, LONG, TEXT[9:]], max_tokens=9, temperature=0, stream=True
        )
        for chunk in chunks:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    assert texts == [ANSWER[:9]] * 3


def test_a_prompt_asked_again_comes_from_the_cache() -> None:
    with live_server(FakeModel()) as server, server.client() as client:
        cached = []
        for _ in range(2):
            usage = client.completions.create(model="tiny", prompt=TEXT, max_tokens=3).usage
            assert usage is not None
            assert usage.prompt_tokens_details is not None
            cached.append(usage.prompt_tokens_details.cached_tokens)
        assert cached == [0, len(TEXT) - 1]


def test_a_seed_repeats() -> None:
    class Flat(FakeModel):
        def forward(self, *args: Any, **options: Any) -> Any:
            return super().forward(*args, **options) * 0.4

    with live_server(Flat()) as server, server.client() as client:

        def answer(seed: int) -> str:
            options: dict[str, Any] = {"max_tokens": 20, "seed": seed, "extra_body": {"ignore_eos": True}}
            return client.completions.create(model="tiny", prompt=TEXT, **options).choices[0].text

        assert answer(3) == answer(3)
        assert answer(3) != answer(4)


def test_unknown_fields_are_ignored(server: LiveServer) -> None:
    extra = {"metadata": {"user_id": "x"}, "anything": [1, {"a": None}], "top_k": -1, "n": 1, "logprobs": None}
    with server.client() as client:
        answer = client.completions.create(model="tiny", prompt=TEXT, temperature=0, user="me", extra_body=extra)
    assert answer.choices[0].text == ANSWER[:16]


CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"temperature": -1}, "temperature", "temperature is -1.0; it must be a number from 0 to 2"),
        ({"temperature": "hot"}, "temperature", 'temperature is "hot"'),
        ({"top_p": 1.01}, "top_p", "from 0 to 1"),
        ({"max_tokens": -3}, "max_tokens", "at least 1"),
        ({"max_tokens": 1.5}, "max_tokens", "valid integer"),
        ({"max_completion_tokens": -1, "max_tokens": 5}, "max_tokens", "at least 1"),
        ({"stop": [1]}, "stop", "stop is [1]"),
        ({"stop": ""}, "stop", "1 to 1024"),
        ({"stop": ["x"] * 17}, "stop", "up to 16"),
        ({"seed": "s"}, "seed", "valid integer"),
        ({"stream": "yes"}, "stream", "valid boolean"),
        ({"n": 0}, "n", "n is 0; it must be an integer from 1 to 128"),
        ({"min_p": 1.5}, "min_p", "from 0 to 1"),
        ({"presence_penalty": 3}, "presence_penalty", "from -2 to 2"),
        ({"frequency_penalty": -2.5}, "frequency_penalty", "from -2 to 2"),
        ({"repetition_penalty": 0}, "repetition_penalty", "from 0.01 to 100"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "from 0 to max_tokens"),
        ({"logit_bias": {"a": 1}}, "logit_bias", 'names "a"; its keys must be token ids'),
        ({"logit_bias": {"3": 101}}, "logit_bias", "from -100 to 100"),
        ({"logit_bias": {"251": 1}}, "logit_bias", "ids run from 0 to 250"),
        ({"logit_bias": [1]}, "logit_bias", "logit_bias is [1]"),
        ({"stop_token_ids": [300]}, "stop_token_ids", "ids run from 0 to 250"),
        ({"logprobs": 3}, "logprobs", "valid boolean"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs", "from 0 to 20"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs to be true"),
        ({"tools": [{"type": "function"}]}, "tools.0", "type"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "text, json_object, json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is null; it must be an object"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": "x"}}},
            "response_format.json_schema.schema",
            'is "x"; it must be an object',
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}},
            "response_format",
            "Invalid type: nonsense",
        ),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": ["hi"]}, "messages.0", "must be an object"),
        ({"messages": [{"role": "wizard", "content": ""}]}, "messages.0.role", "system, developer, user"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "messages.0.content is 5"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "null"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0",
            "is of type image_url; the model on this server reads text only",
        ),
        ({"messages": [{"role": "user", "content": ""}]}, "prompt", "the prompt is empty"),
    ],
)
def test_bad_values_are_named(server: LiveServer, body: dict[str, Any], param: str, words: str) -> None:
    with server.client() as client, pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body={"model": "tiny", **CHAT, **body}, cast_to=object)
    assert isinstance(caught.value.body, dict)
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert caught.value.type == "invalid_request_error"
    assert caught.value.param == param
    assert words in caught.value.body["message"]


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        (5, "prompt"),
        ([], "prompt"),
        ([[]], "prompt"),
        ([1, "a"], "prompt"),
        ([["a"]], "prompt.0"),
        ([True], "prompt"),
        ([-1], "prompt"),
        ([2**40], "prompt"),
        ([251], "prompt"),
        (["x"] * 129, "prompt"),
    ],
)
def test_bad_prompts(server: LiveServer, prompt: Any, param: str) -> None:
    with server.client() as client, pytest.raises(openai.BadRequestError) as caught:
        client.post("/completions", body={"model": "tiny", "prompt": prompt}, cast_to=object)
    assert caught.value.param == param


def test_context_overflow_has_the_numbers(server: LiveServer) -> None:
    limit = server.engine.max_model_len
    assert limit == 1024
    with server.client() as client:
        for prompt, max_tokens in (("x" * 1020, 5), ("x" * 2000, 16), ("x", 10**9)):
            with pytest.raises(openai.BadRequestError) as caught:
                client.completions.create(model="tiny", prompt=prompt, max_tokens=max_tokens)
            assert caught.value.code == "context_length_exceeded"
            for number in (len(prompt), max_tokens, len(prompt) + max_tokens, limit):
                assert str(number) in caught.value.message
        client.completions.create(model="tiny", prompt="x" * 1020, max_tokens=4)


def test_a_chat_without_a_length_takes_what_room_there_is(server: LiveServer) -> None:
    text = ("abcdefgh" * 127)[:1000]
    with server.client() as client:
        chat = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": text}], temperature=0)
    assert chat.choices[0].finish_reason == "length"
    assert chat.usage is not None
    assert chat.usage.total_tokens == server.engine.max_model_len


def test_zero_tokens_are_no_limit_in_a_chat(server: LiveServer) -> None:
    with server.client() as client:
        whole = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": TEXT}], max_completion_tokens=0, stop=["dog"]
        )
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert whole.usage.completion_tokens > 1


def test_unknown_model(server: LiveServer) -> None:
    with server.client() as client, pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-9", prompt="x")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_answers_are_those_of_the_engine() -> None:
    with live_server(FakeModel()) as server, server.client() as client:
        answer = client.completions.create(model="tiny", prompt=LONG, max_tokens=40, temperature=0)
    tokens = expected_output(LONG.encode(), 40)
    assert answer.choices[0].text == ByteTokenizer().decode(tokens)


def test_without_a_chat_template_chats_are_in_the_models_own_format() -> None:
    with live_server(template=None) as server, server.client() as client:
        whole = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}], max_tokens=3)
        written = render([ChatMessage("user", "x")])
        assert whole.usage is not None
        assert whole.usage.prompt_tokens == len(written.encode())
