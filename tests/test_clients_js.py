"""JavaScript clients: Vercel's AI SDK and the official SDKs of both protocols, each in a script of tests/js."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clients import client_environment, npm_packages
from competent import DOCUMENTED_QUESTION, competent_server, documented
from fails_once import FailsOnce
from live_server import LiveServer

pytestmark = pytest.mark.clients
ECHO = "You asked for this: Hello there"
TOKENS = len(ECHO) + 1  # bytes, and the end
CALL = ["get_weather", {"place": "San Marino", "days": 3}]
RESULT = "San Marino: 21 degrees for 3 days"


@pytest.fixture(scope="module")
def layer() -> FailsOnce:
    return FailsOnce()


@pytest.fixture(scope="module")
def server(layer: FailsOnce) -> Iterator[LiveServer]:
    with competent_server(wrap=layer.around) as server:
        yield server


def run(script: str, folder: Path, *arguments: str) -> str:
    """What a script prints."""
    (folder / "script.mjs").write_text(script)
    # Modules are looked for beside the script.
    (folder / "node_modules").symlink_to(npm_packages())
    done = subprocess.run(
        ["node", "script.mjs", *arguments],
        env=client_environment(folder),
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def found_by(name: str, server: LiveServer, folder: Path) -> Any:
    """What a script of tests/js found about the server."""
    return json.loads(run((Path(__file__).parent / "js" / name).read_text(), folder, server.url))


@pytest.fixture(scope="module")
def ai(server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return found_by("ai.mjs", server, tmp_path_factory.mktemp("ai"))


@pytest.fixture(scope="module")
def official(server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return found_by("official.mjs", server, tmp_path_factory.mktemp("official"))


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
def test_ai_sdk(ai: Any, protocol: str) -> None:
    found = ai[protocol]
    assert found["whole"].pop("read") > len("Hello there")
    assert found["whole"] == {"text": ECHO, "finish": "stop", "used": TOKENS}
    assert found["stream"].pop("parts") > 3
    assert found["stream"] == {"text": ECHO, "finish": "stop", "used": TOKENS}
    assert found["thinking"] == {
        "text": "You asked for this: Show your reasoning.",
        "reasoning": "It is a matter of care.",
    }
    assert list(found["object"]) == ["status"]
    assert isinstance(found["object"]["status"], str)


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
def test_ai_sdk_loop_of_tools(ai: Any, protocol: str) -> None:
    steps = [
        {"finish": "tool-calls", "calls": [CALL], "results": [RESULT]},
        {"finish": "stop", "calls": [], "results": []},
    ]
    loop, streamed = ai[protocol]["loop"], ai[protocol]["streamedLoop"]
    assert loop == {"text": f"The tool says: {RESULT}.", "steps": steps}
    kinds = streamed.pop("kinds")
    assert streamed == loop
    order = ["tool-input-start", "tool-input-delta", "tool-input-end", "tool-call", "tool-result", "text-delta"]
    assert [kind for kind in kinds if kind in order] == order
    assert "error" not in kinds


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
def test_ai_sdk_errors(ai: Any, layer: FailsOnce, protocol: str) -> None:
    found = ai[protocol]
    assert (found["wrong"]["status"], found["wrong"]["retryable"]) == (400, False)
    assert "10000000" in found["wrong"]["message"], "the server's own words"
    assert (found["final"]["status"], layer.tries[f"missing/ai-{protocol}"]) == (404, 1)
    assert (found["retried"], layer.tries[f"rate/ai-{protocol}"]) == (ECHO, 2)
    assert (found["stubborn"], layer.tries[f"plan/ai-{protocol}"]) == (ECHO, 2)


@pytest.mark.parametrize(("protocol", "finish"), [("chat", "stop"), ("messages", "end_turn")])
def test_official(official: Any, layer: FailsOnce, protocol: str, finish: str) -> None:
    found = official[protocol]
    assert (found["text"], found["whole"], found["finish"], found["used"]) == (ECHO, ECHO, finish, TOKENS)
    assert found["deltas"] > 3
    assert found["calls"] == [CALL]
    assert found["end"] == f"The tool says: {RESULT}."
    assert found["wrong"].pop("id").startswith("req_")
    assert found["wrong"] == {"class": "BadRequestError", "status": 400}
    asked = f"rate/js-{'openai' if protocol == 'chat' else 'anthropic'}"
    assert (found["retried"], layer.retries[asked]) == (ECHO, ["0", "1"])


def test_official_fragments_of_arguments(official: Any) -> None:
    assert official["messages"]["json"] == CALL[1]


def test_official_responses(official: Any) -> None:
    found = official["responses"]
    assert [found["name"], found["arguments"]] == CALL
    assert (found["end"], found["status"]) == (f"The tool says: {RESULT}.", "completed")
    assert found["kinds"] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]


@pytest.mark.parametrize("section", ["The Vercel AI SDK", "The official SDKs for JavaScript"])
def test_documented_use(server: LiveServer, tmp_path: Path, section: str) -> None:
    printed = run(documented(section, "js", server.url), tmp_path)
    assert printed == f"You asked for this: {DOCUMENTED_QUESTION}"
