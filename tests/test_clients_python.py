"""Python clients: LiteLLM over both protocols, and what the official SDKs do when a request fails."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from clients import client_environment, python_client
from competent import DOCUMENTED_QUESTION, competent_server, documented
from fails_once import FINAL, HEADER, RETRIED, FailsOnce
from fake_model import FakeModel
from live_server import LiveServer, live_server, wait_for
from longsight.engine import SamplingDefaults

# LiteLLM asks for mcp as soon as tools are declared, and for tenacity before it tries again; it depends on neither.
ANSWER = f"You asked for this: {DOCUMENTED_QUESTION}"
ECHO = "You asked for this: Hello there"
QUESTION: list[Any] = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def layer() -> FailsOnce:
    return FailsOnce()


@pytest.fixture(scope="module")
def server(layer: FailsOnce) -> Iterator[LiveServer]:
    with competent_server(wrap=layer.around) as server:
        yield server


@pytest.fixture(scope="module")
def litellm(server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What tests/litellm_calls.py found, by protocol."""
    script = str(Path(__file__).with_name("litellm_calls.py"))
    return json.loads(run(tmp_path_factory.mktemp("home"), script, server.url).splitlines()[-1])


def run(home: Path, *arguments: str) -> str:
    """What Python prints in LiteLLM's environment."""
    done = subprocess.run(
        [python_client("litellm"), *arguments],
        # Otherwise it downloads a list of models and their prices when it is imported.
        env=client_environment(home, LITELLM_LOCAL_MODEL_COST_MAP="True"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.clients
def test_the_documented_use_of_litellm(server: LiveServer, tmp_path: Path) -> None:
    assert ANSWER in run(tmp_path, "-c", documented("LiteLLM", "python", server.url))


@pytest.mark.clients
@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
def test_litellm(litellm: Any, layer: FailsOnce, protocol: str) -> None:
    found = litellm[protocol]
    tokens = len(ECHO) + 1  # bytes, and the end
    assert found["whole"] == {"text": ECHO, "finish": "stop", "sum": 0, "used": tokens}
    assert found["stream"].pop("chunks") > 3
    assert found["stream"] == {"text": ECHO, "finish": "stop", "used": tokens}
    loop = {
        "finish": "tool_calls",
        "name": "get_weather",
        "arguments": {"place": "San Marino", "days": 3},
        "text": "The tool says: 21 degrees.",
        "end": "stop",
    }
    assert found["tools"] == found["streamed_tools"] == loop
    assert found["thinking"] == {
        "text": "You asked for this: Show your reasoning.",
        "reasoning": "It is a matter of care.",
    }
    assert found["wrong"] == found["unknown"] == {"class": "BadRequestError", "status": 400}
    assert found["retried"] == {"text": ECHO}
    assert layer.tries[f"rate/litellm-{protocol}"] == 2


def by_openai(url: str, **options: Any) -> str | None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", **options) as client:
        return client.chat.completions.create(model="tiny", messages=QUESTION).choices[0].message.content


def by_responses(url: str, **options: Any) -> str | None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", **options) as client:
        return client.responses.create(model="tiny", input="Hello there").output_text


def by_anthropic(url: str, **options: Any) -> str | None:
    with anthropic.Anthropic(base_url=f"{url}/anthropic", api_key="none", **options) as client:
        answer = client.messages.create(model="tiny", max_tokens=400, messages=QUESTION)
    return answer.content[0].text  # type: ignore[union-attr]


ASK: dict[str, Callable[..., str | None]] = {
    "openai": by_openai,
    "responses": by_responses,
    "anthropic": by_anthropic,
}


@pytest.mark.parametrize("sdk", ASK)
@pytest.mark.parametrize("failure", RETRIED)
def test_what_passes_is_tried_again(server: LiveServer, layer: FailsOnce, sdk: str, failure: str) -> None:
    asked = f"{failure}/{sdk}"
    assert ASK[sdk](server.url, max_retries=2, default_headers={HEADER: asked}) == ECHO
    assert layer.retries[asked] == ["0", "1"]


@pytest.mark.parametrize("sdk", ASK)
@pytest.mark.parametrize("failure", FINAL)
def test_what_stays_wrong_is_asked_once(server: LiveServer, layer: FailsOnce, sdk: str, failure: str) -> None:
    """Even a 429, where the server says by x-should-retry that it will not pass."""
    asked = f"{failure}/{sdk}"
    with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)):
        ASK[sdk](server.url, max_retries=2, default_headers={HEADER: asked})
    assert layer.tries[asked] == 1


@pytest.mark.parametrize("sdk", ASK)
def test_a_client_that_waits_no_longer_frees_its_request(sdk: str) -> None:
    """Their timeouts close the connection, and the engine hears of it, of the first try as of the second."""
    began: list[int] = []
    model = FakeModel(seconds=0.02, before=lambda tokens: began.append(len(tokens)))
    with live_server(model, defaults=SamplingDefaults(temperature=0)) as server:
        with pytest.raises((openai.APITimeoutError, anthropic.APITimeoutError)):
            ASK[sdk](server.url, max_retries=1, timeout=0.5)
        wait_for(lambda: bool(began))
        server.wait_until_idle()
