"""How `longsight serve` ends, as a process with the constructed model; and that it doesn't begin with a broken one."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from live_server import wait_for
from longsight.cli.main import main
from test_cli_serve import COMMAND, serve


@pytest.fixture(autouse=True)
def _cache(constructed: Path) -> None:
    """Every test here uses the constructed model, in the tests' own cache."""


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "longsight", "prompt": "abcdefgh" * 20, "temperature": 0, "ignore_eos": True, **fields}


@contextmanager
def streaming(process: subprocess.Popen[str], url: str, tokens: int) -> Iterator[Iterator[dict[str, Any]]]:
    """The events of a stream whose first one has come."""
    with (
        httpx.Client(timeout=30) as client,
        client.stream("POST", f"{url}/completions", json=body(stream=True, max_tokens=tokens)) as response,
    ):
        assert response.status_code == 200
        lines = (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))
        events = (json.loads(line) for line in lines if line != "[DONE]")
        next(events)
        yield events


def status(url: str) -> tuple[int, str]:
    response = httpx.get(url.removesuffix("/v1") + "/ready")
    return response.status_code, response.json()["status"]


def test_sigterm_lets_a_stream_finish_and_takes_no_other() -> None:
    options = ("--threads", "1", "--no-speculation", "--max-model-len", "8192")
    with serve(*options) as (process, url):
        assert status(url) == (200, "ready")
        with streaming(process, url, 3000) as events:
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: status(url)[0] == 503)
            assert status(url) == (503, "draining")
            refused = httpx.post(f"{url}/completions", json=body(max_tokens=1))
            assert refused.status_code == 503
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert refused.headers["x-should-retry"] == "true"
            assert refused.headers["connection"] == "close"
            assert "about to stop" in refused.json()["error"]["message"]
            root = url.removesuffix("/v1")
            assert httpx.get(f"{root}/health").json()["running"] == 1
            assert "longsight_draining 1.0" in httpx.get(f"{root}/metrics").text
            *_, last = events
        assert last["choices"][0]["finish_reason"] == "length"
        assert process.wait(10) == 0
        assert process.stderr is not None
        rest = process.stderr.read()
        assert "finish_reason=length" in rest
        assert "completion_tokens=3000" in rest
        assert "Traceback" not in rest


@pytest.mark.parametrize("how", ["time is up", "SIGTERM again", "SIGINT"])
def test_what_does_not_finish_ends_with_an_error(how: str) -> None:
    with serve("--threads", "1", "--drain-seconds", "0.3" if how == "time is up" else "600") as (process, url):
        with streaming(process, url, 200_000) as events:
            process.send_signal(signal.SIGTERM)
            if how != "time is up":
                wait_for(lambda: status(url)[0] == 503)
                process.send_signal(signal.SIGINT if how == "SIGINT" else signal.SIGTERM)
            *_, last = events
        assert last["error"]["code"] == "unavailable"
        assert process.wait(10) == (130 if how == "SIGINT" else 0)
        assert process.stderr is not None
        rest = process.stderr.read()
        assert "Traceback" not in rest
        assert "requests under way have" in rest


def test_every_line_is_json_if_asked_for_and_an_idle_server_ends_at_once() -> None:
    command = [*COMMAND, "constructed", "--threads", "1", "--log-format", "json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as p:
        assert p.stderr is not None
        try:
            first = json.loads(p.stderr.readline())
            assert first["message"] == "serving"
            assert first["model"] == "longsight"
            assert httpx.post(f"{first['url']}/completions", json=body(max_tokens=3), timeout=30).status_code == 200
            p.send_signal(signal.SIGTERM)
            lines = [json.loads(line) for line in p.stderr.read().splitlines()]
            assert [line["completion_tokens"] for line in lines if line["message"] == "request"] == [3]
            assert p.wait(10) == 0
        finally:
            p.kill()


@pytest.mark.parametrize(
    ("tensor", "value", "words"),
    [
        ("model.norm.weight", float("nan"), "not finite"),
        ("model.norm.weight", float("inf"), "not finite"),
        ("lm_head.weight", 0.0, "the same logit"),
    ],
)
def test_a_model_that_computes_nothing_is_not_served(
    constructed: Path, tmp_path: Path, tensor: str, value: float, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = shutil.copytree(constructed, tmp_path / "broken")
    (file,) = broken.glob("*.safetensors")
    tensors = load_file(file)
    (name,) = (name for name in tensors if name.endswith(tensor))
    save_file({**tensors, name: torch.full_like(tensors[name], value)}, file)
    assert main(["serve", str(broken), "--port", "0"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("longsight: error: the model gives ")
    assert words in err
    assert "it will not be served" in err
    assert err.count("\n") == 1
