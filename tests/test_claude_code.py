"""Claude Code, unattended, against this server: a turn of text, and one with several rounds of tools."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from clients import client_environment, npm_client
from fake_model import ScriptedModel
from live_server import live_server
from longsight.engine import SamplingDefaults
from longsight.model.constructed import write_constructed
from longsight.model.markup import END_THINK, NAMESPACE, THINK
from longsight.server.usage import UsageRecord
from test_cli_serve import serve

pytestmark = pytest.mark.clients
DOCUMENT = Path(__file__).parents[1] / "docs" / "clients.md"


@pytest.fixture(scope="session")
def claude() -> Path:
    return npm_client("claude")


def run(claude: Path, home: Path, url: str, prompt: str, *options: str) -> dict[str, Any]:
    """Claude Code's own account of one unattended run, with the settings of docs/clients.md."""
    section = DOCUMENT.read_text().split("## Claude Code")[1]
    settings = dict(re.findall(r"^export (\w+)=(.*)$", section.split("```bash")[1].split("```")[0], re.MULTILINE))
    assert settings["ANTHROPIC_BASE_URL"].endswith("/anthropic")
    workspace = home / "workspace"
    workspace.mkdir(exist_ok=True)
    done = subprocess.run(
        [claude, "-p", prompt, "--output-format", "json", *options],
        env=client_environment(home, **{**settings, "ANTHROPIC_BASE_URL": f"{url}/anthropic"}),
        cwd=workspace,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    account: dict[str, Any] = json.loads(done.stdout)
    assert account["is_error"] is False
    return account


def test_a_turn_of_text_from_the_built_in_model(claude: Path, tmp_path: Path) -> None:
    """The model goes on as the text did after the last earlier `]~b]ai`, up to a true end of a turn.

    Its own template has no turns, so it is served with MiniMax-M3's format, in which the user's turn ends right after
    the sentence.
    """
    checkpoint = write_constructed(tmp_path / "checkpoint")
    (checkpoint / "chat_template.jinja").unlink()
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": 257, "do_sample": false}')
    prompt = "What is the code?\n]~b]ai\nThe code is 7431-KLM."
    options = ("--model-id", "longsight", "--max-model-len", "200000", "--threads", "1")
    with serve(*options, model=str(checkpoint)) as (_, url):
        base = url.removesuffix("/v1")
        first = run(claude, tmp_path, base, prompt)
        second = run(claude, tmp_path, base, prompt)
    assert [run["result"] for run in (first, second)] == ["The code is 7431-KLM."] * 2
    assert first["stop_reason"] == "end_turn"
    assert first["usage"]["output_tokens"] == len("The code is 7431-KLM.") + 1
    assert second["usage"]["cache_read_input_tokens"] > 20_000


def test_a_turn_with_several_rounds_of_tools(claude: Path, tmp_path: Path) -> None:
    """Two files read in parallel, then a command: each result stands nowhere before its tool has run."""
    (tmp_path / "workspace").mkdir()
    for name, text in (("a.txt", "first half: 7431"), ("b.txt", "second half: KLM")):
        (tmp_path / "workspace" / name).write_text(text + "\n")

    def script(prompt: str) -> str:
        results = prompt.split("]~b]tool\n")[1:]
        if not results:
            assert '"name": "Read"' in prompt
            paths = [str(tmp_path / "workspace" / name) for name in ("a.txt", "b.txt")]
            return f"{THINK}Two files.{END_THINK}Reading." + calls(*(("Read", {"file_path": path}) for path in paths))
        if len(results) == 1:
            return f"{THINK}Count.{END_THINK}Counting." + calls(("Bash", {"command": "cat a.txt b.txt | wc -c"}))
        halves = re.search(r"first half: (\d+)(?:.|\n)*second half: (\w+)", results[0])
        count = re.search(r"<response>\s*(\d+)", results[1])
        assert halves is not None
        assert count is not None, results[1]
        return f"{END_THINK}{halves[1]}-{halves[2]}, {count[1]} bytes."

    records: list[UsageRecord] = []
    model = ScriptedModel(script, context=400_000)
    greedy = SamplingDefaults(temperature=0)
    with live_server(
        model,
        pages=32_768,
        chunk_tokens=8192,
        template=None,
        defaults=greedy,
        aliases=("longsight",),
        observers=[records.append],
    ) as server:
        account = run(claude, tmp_path, server.url, "Put the halves together.", "--allowedTools", "Read", "Bash")
    assert account["result"] == "7431-KLM, 34 bytes."
    assert account["num_turns"] == 4
    assert account["permission_denials"] == []
    # Thinking came back, and each request went on from the one before.
    first, second, third = (p for p in model.prompts if "Put the halves together." in p)
    assert third.startswith(second)
    assert second.startswith(first)
    assert f"{THINK}Two files.{END_THINK}Reading." in second
    assert {(r.dialect, r.status) for r in records} == {("anthropic", "ok")}
    assert records[-1].cached_tokens >= len(second.encode()) - 256


def calls(*invokes: tuple[str, dict[str, str]]) -> str:
    written = "".join(
        f'{NAMESPACE}<invoke name="{name}">'
        + "".join(f"{NAMESPACE}<{key}>{value}{NAMESPACE}</{key}>" for key, value in arguments.items())
        + f"{NAMESPACE}</invoke>\n"
        for name, arguments in invokes
    )
    return f"{NAMESPACE}<tool_call>\n{written}{NAMESPACE}</tool_call>"
