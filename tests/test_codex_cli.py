"""Codex CLI, unattended, against this server: turns with its shell tool, that end in text or in JSON of a schema."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from clients import client_environment, npm_client
from fake_model import ScriptedModel
from live_server import live_server
from longsight.engine import SamplingDefaults
from longsight.model.markup import NAMESPACE as NS
from longsight.server.usage import UsageRecord

pytestmark = pytest.mark.clients
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 40}},
    "required": ["answer"],
    "additionalProperties": False,
}
DOCUMENT = Path(__file__).parents[1] / "docs" / "clients.md"


@pytest.fixture(scope="session")
def codex() -> Path:
    return npm_client("codex")


def run(codex: Path, home: Path, url: str, model: str, prompt: str, *options: str) -> Sequence[dict[str, object]]:
    """Codex's own account of one unattended turn, with the settings of docs/clients.md."""
    found = re.search(r"```toml\n(.*?)```", DOCUMENT.read_text().split("## Codex CLI")[1], re.DOTALL)
    assert found is not None
    config = found[1].replace("http://127.0.0.1:8000/v1", url).replace('model = "longsight"', f'model = "{model}"', 1)
    settings, workspace = home / ".codex", home / "workspace"
    settings.mkdir()
    workspace.mkdir()
    (settings / "config.toml").write_text(config)
    done = subprocess.run(
        [codex, "exec", "--json", "--skip-git-repo-check", "--cd", workspace, *options, prompt],
        env=client_environment(home, CODEX_HOME=str(settings), LONGSIGHT_API_KEY="unused"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def items(events: Sequence[dict[str, object]], kind: str) -> list[dict[str, object]]:
    """The finished items of a kind."""
    found = [e["item"] for e in events if e["type"] == "item.completed"]
    return [item for item in found if isinstance(item, dict) and item["type"] == kind]


@pytest.mark.parametrize("form", ["text", "schema"])
def test_a_turn_with_the_shell_tool(codex: Path, tmp_path: Path, form: str) -> None:
    """The sum is worked out by the shell: its result stands nowhere before the command has run. Where the last answer
    has a schema, tools are called before it all the same."""
    command = "echo longsight-tool-$((40 + 2))"
    answers = {"text": "The shell said {}.", "schema": '{{"answer": "{}"}}'}
    said = "Running." if form == "text" else ""  # text beside a call would not be of the schema
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    options = ["--output-schema", str(tmp_path / "schema.json")] if form == "schema" else []

    def script(prompt: str) -> str:
        turns = prompt.rsplit("]~b]tool", 1)
        result = re.search("longsight-tool-[0-9]+", turns[1]) if len(turns) > 1 else None
        if result is not None:
            return f"<mm:think>It ran.</mm:think>{answers[form].format(result[0])}"
        assert "exec_command" in prompt
        call = f'{NS}<invoke name="exec_command">{NS}<cmd>{command}{NS}</cmd>{NS}</invoke>\n'
        return f"<mm:think>I run it.</mm:think>{said}{NS}<tool_call>\n{call}{NS}</tool_call>"

    records: list[UsageRecord] = []
    model = ScriptedModel(script, context=100_000)
    with live_server(
        model,
        pages=8192,
        chunk_tokens=4096,
        template=None,
        defaults=SamplingDefaults(temperature=0),
        observers=[records.append],
    ) as server:
        # The script's one command is safe, and the sandbox needs rights that test machines may not give.
        unattended = "--dangerously-bypass-approvals-and-sandbox"
        events = run(codex, tmp_path, f"{server.url}/v1", "tiny", "Run the tool.", unattended, *options)
    (ran,) = items(events, "command_execution")
    assert command in str(ran["command"])
    assert (ran["aggregated_output"], ran["exit_code"]) == ("longsight-tool-42\n", 0)
    last = answers[form].format("longsight-tool-42")
    assert [m["text"] for m in items(events, "agent_message")] == [*filter(None, [said]), last]
    assert [r["text"] for r in items(events, "reasoning")] == ["I run it.", "It ran."]
    # Thinking came back signed with the second request, whose beginning was in the cache.
    first, second = model.prompts
    assert f"<mm:think>I run it.</mm:think>{said}{NS}<tool_call>" in second
    assert second.startswith(first)
    assert [(r.dialect, r.status) for r in records] == [("responses", "ok")] * 2
    assert records[1].cached_tokens >= len(first.encode()) - 256
