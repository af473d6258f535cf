"""POST /tokenize and /detokenize: vLLM's shapes, the tokens that the model really reads, keys, rates and bounds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from competent import competent_server, documented
from fake_model import ScriptedModel
from live_server import LiveServer, live_server
from longsight.model.built_in import model_dir
from longsight.model.tokenizer import Tokenizer
from longsight.server import tokenize
from longsight.server.gate import RateGate
from longsight.server.keys import KeyStore, NewKey
from longsight.server.limits import Limits
from longsight.server.stored_keys import StoredKeys

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with competent_server() as server:
        yield server


def post(server: LiveServer, path: str, status: int = 200, **fields: Any) -> Any:
    answer = httpx.post(f"{server.url}/{path}", json=fields, timeout=30)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_a_prompt_and_back(server: LiveServer) -> None:
    told = post(server, "tokenize", model="tiny", prompt="Grüße", return_token_strs=True)
    assert told == {
        "count": 7,
        "max_model_len": 16_384,
        "tokens": list("Grüße".encode()),
        "token_strs": ["G", "r", "Ã", "¼", "Ã", "Ł", "e"],
    }
    assert post(server, "detokenize", model="tiny", tokens=told["tokens"]) == {"prompt": "Grüße"}
    assert post(server, "tokenize", prompt="")["tokens"] == []
    assert post(server, "tokenize", prompt="a")["token_strs"] is None


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": [TOOL]},
        {"thinking": {"type": "enabled"}},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "none"},
    ],
)
def test_a_conversation_has_the_tokens_that_a_chat_request_reads(server: LiveServer, fields: dict[str, Any]) -> None:
    told = post(server, "tokenize", model="longsight", messages=HELLO, **fields)
    answer = post(server, "v1/chat/completions", model="longsight", messages=HELLO, max_tokens=1, **fields)
    assert told["count"] == len(told["tokens"]) == answer["usage"]["prompt_tokens"]
    assert isinstance(server.model, ScriptedModel)
    # The stand-in notes its prompts up to the section that they leave open.
    assert post(server, "detokenize", tokens=told["tokens"])["prompt"].startswith(server.model.prompts[-1])


def test_without_the_generation_prompt(server: LiveServer) -> None:
    whole = post(server, "tokenize", messages=HELLO)["tokens"]
    part = post(server, "tokenize", messages=HELLO, add_generation_prompt=False)["tokens"]
    assert whole[: len(part)] == part
    assert 0 < len(part) < len(whole)


def test_a_template_hears_of_the_generation_prompt() -> None:
    template = "{{ messages[0].content }}{% if add_generation_prompt %}>{% endif %}"
    with live_server(template=template) as server:
        assert bytes(post(server, "tokenize", messages=HELLO)["tokens"]) == b"Hello>"
        told = post(server, "tokenize", messages=HELLO, add_generation_prompt=False)
        assert bytes(told["tokens"]) == b"Hello"


def test_the_embedded_models_tokenizer() -> None:
    """Special tokens come back as they went in; a byte-level vocabulary spells its tokens its own way."""
    tokenizer = Tokenizer.from_dir(model_dir(None))
    marker = next(iter(tokenizer.added_tokens))
    with live_server(tokenizer=tokenizer, template=None) as server:
        server.engine.model.config.vocab_size = tokenizer.vocab_size
        told = post(server, "tokenize", prompt=f"The key{marker}Ä", return_token_strs=True)
        assert post(server, "detokenize", tokens=told["tokens"])["prompt"] == f"The key{marker}Ä"
        assert len(told["token_strs"]) == told["count"]
        assert marker in told["token_strs"]


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        ("tokenize", {}, "either prompt or messages is needed"),
        ("tokenize", {"prompt": "a", "messages": HELLO}, "either prompt or messages is needed"),
        ("tokenize", {"prompt": ["a"]}, "prompt is ["),
        ("tokenize", {"messages": [{"role": "nobody", "content": ""}]}, "nobody"),
        ("tokenize", {"messages": HELLO, "add_special_tokens": True}, "add_special_tokens is true"),
        ("tokenize", {"messages": HELLO, "continue_final_message": True}, "continue_final_message is true"),
        ("tokenize", {"prompt": "\ud800"}, ""),
        ("detokenize", {}, "tokens is missing"),
        ("detokenize", {"tokens": [1, -1]}, "tokens.1 is -1; token ids run from 0 to 250"),
        ("detokenize", {"tokens": [251]}, "tokens.0 is 251; token ids run from 0 to 250"),
        ("detokenize", {"tokens": [1.5]}, "tokens.0 is 1.5"),
        ("detokenize", {"tokens": [True]}, "tokens.0 is true"),
        ("detokenize", {"tokens": "1 2"}, "tokens is"),
    ],
)
def test_what_is_refused(server: LiveServer, path: str, fields: dict[str, Any], words: str) -> None:
    body = json.dumps(fields)
    answer = httpx.post(f"{server.url}/{path}", content=body)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]


def test_another_model_is_not_found(server: LiveServer) -> None:
    for path, fields in (("tokenize", {"prompt": "a"}), ("detokenize", {"tokens": [1]})):
        assert post(server, path, 404, model="else", **fields)["error"]["code"] == "model_not_found"


def test_a_bound(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "MAX_TOKENS", 4)
    assert post(server, "tokenize", prompt="abcd")["count"] == 4
    refused = post(server, "tokenize", 400, prompt="abcde")["error"]
    assert (refused["message"], refused["param"]) == ("prompt has 5 tokens; one request may have 4", "prompt")
    assert post(server, "detokenize", 400, tokens=[1] * 5)["error"]["param"] == "tokens"


def test_keys_and_rates(tmp_path: Path) -> None:
    store = KeyStore(str(tmp_path / "keys.db"), create=True)
    chat, files, other = (
        store.create(NewKey("a", **options))[1] for options in ({}, {"scopes": ("files",)}, {"models": ("else",)})
    )
    limits = Limits(rpm=3, tpm=1000)
    with live_server(authenticator=StoredKeys(store), gate=RateGate(limits), limits=limits, body_limit=9000) as server:
        for path, fields in (("tokenize", {"prompt": "a" * 2000}), ("detokenize", {"tokens": [1]})):

            def ask(key: str | None, path: str = path, fields: dict[str, Any] = fields) -> httpx.Response:
                return httpx.post(f"{server.url}/{path}", json=fields, headers={"x-api-key": key} if key else {})

            assert [ask(key).status_code for key in (None, files, other)] == [401, 403, 403]
            answer = ask(chat)
            assert answer.status_code == 200, answer.text  # its 2,000 tokens are none that the model reads
            assert answer.headers["x-ratelimit-remaining-tokens"] == "1000"
        assert ask(chat).status_code == 200
        refused = ask(chat)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        large = httpx.post(f"{server.url}/tokenize", content=b" " * 10_000, headers={"x-api-key": chat})
        assert large.status_code == 413
        message = large.json()["error"]["message"]
        assert "limit of 9000 bytes" in message
        assert "--max-body" in message
        assert "body_bytes" in message
    store.close()


def test_the_documented_snippet(server: LiveServer) -> None:
    source = documented("Counting tokens", "python", server.url)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("16 16384 [79, 110, 99, 101, 32,")
    assert "]~b]user\nHello" in done.stdout
