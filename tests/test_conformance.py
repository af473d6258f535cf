"""Conformance suites of others, over a model that does what they ask of one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from clients import client_environment, npm_client, python_client
from competent import competent_server
from live_server import LiveServer

pytestmark = pytest.mark.clients
# Without jsonschema each comparison with a schema counts as failed.
# llm-comply tries reasoning only with models whose names say that they do it.
THINKERS = ("gpt-5-like", "claude-sonnet-4-like")
TEXT_ONLY = "the model of this server reads text only, and says so with a 400: there is no image it could describe"
EXPECTED_FAILURES: Mapping[str, Mapping[str, str]] = {
    "openai-chat": {"chat-image-input": TEXT_ONLY},
    "open-responses": {"image-input": TEXT_ONLY},
    "anthropic": {"anth-image-input": TEXT_ONLY},
}
EXPECTED_WARNINGS: Mapping[str, Mapping[str, str]] = {
    "openai-chat": {},
    "open-responses": {"compact-response": "compaction is optional, and this server answers 404"},
    "anthropic": {"anth-error-handling": "max_tokens is optional here: without it the server's default holds"},
}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with competent_server(aliases=THINKERS) as server:
        yield server


@pytest.mark.parametrize(
    ("protocol", "model", "checks"),
    [("openai-chat", THINKERS[0], 9), ("open-responses", THINKERS[0], 13), ("anthropic", THINKERS[1], 9)],
)
def test_llm_comply(server: LiveServer, tmp_path: Path, protocol: str, model: str, checks: int) -> None:
    """Every check passes and none is skipped, but for those that are named above with the reason."""
    command = ["-m", "llm_comply.cli", "-u", f"{server.url}/v1", "-k", "none", "-m", model, "--format", protocol]
    done = subprocess.run(
        [python_client("llm-comply"), *command, "--json"],
        env=client_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
    )
    results: list[dict[str, Any]] = json.loads(done.stdout)["results"]
    assert len(results) >= checks
    found = {result["id"]: result for result in results if result["status"] != "passed"}
    assert {id: r["status"] for id, r in found.items()} == dict.fromkeys(EXPECTED_FAILURES[protocol], "failed"), found
    assert all("HTTP 400 (expected [200])" in result["errors"] for result in found.values()), found
    warned = {r["id"]: r["warnings"] for r in results if r.get("warnings") and r["status"] == "passed"}
    assert list(warned) == list(EXPECTED_WARNINGS[protocol]), warned


def test_compatcanary(server: LiveServer, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = subprocess.run(
        [
            npm_client("compatcanary"),
            "scan",
            *("--base-url", f"{server.url}/v1", "--model", "tiny", "--profile", "modern"),
            *("--format", "json", "--output", report, "--fail-on", "any"),
        ],
        env=client_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(report.read_text())["results"]
    assert [r["status"] for r in results] == ["pass"] * 7, results
