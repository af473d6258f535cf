"""`longsight serve` as a process: the official client, real kernels, Ctrl-C."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import trustme

from longsight.cli.main import main
from test_cli_generate import haystack

COMMAND = [sys.executable, "-m", "longsight.cli.main", "serve", "--port", "0"]


@contextmanager
def serve(*options: str, model: str | None = "constructed") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running server and its base URL; it must end on its own or by the caller's signal."""
    command = [*COMMAND, *([model] if model else []), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            first = process.stderr.readline()
            assert " on http://127.0.0.1:" in first, first
            yield process, first.rsplit(" on ", 1)[1].strip()
        finally:
            if process.poll() is None:
                process.kill()


@pytest.fixture(autouse=True)
def _cache(constructed: Path) -> None:
    """Every test here uses the constructed model, in the tests' own cache."""


def test_serve_answer_and_stop() -> None:
    with serve("--max-model-len", "400000", "--threads", "1") as (process, url):
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
            assert [m.id for m in client.models.list()] == ["longsight"]
            messages = [{"role": "user", "content": haystack(6000)}]
            chat = client.chat.completions.create(
                model="longsight",
                messages=messages,  # type: ignore[arg-type]
                max_tokens=20,
                temperature=0,
                stop=["."],
            )
            assert chat.choices[0].message.content == "7316-KQZ"
            assert chat.usage is not None
            assert chat.usage.prompt_tokens == 6000

        # A long prompt is under way when health is asked for, and when Ctrl-C comes.
        body = {"model": "longsight", "prompt": haystack(390_000), "max_tokens": 5, "temperature": 0}
        thread = threading.Thread(target=ignore_errors, args=(f"{url}/completions", body))
        thread.start()
        root = url.removesuffix("/v1")
        with httpx.Client(base_url=root, timeout=30) as http:
            while http.get("/health").json()["running"] == 0:
                time.sleep(0.01)
            latencies = []
            for _ in range(20):
                started = time.monotonic()
                assert http.get("/health").json()["running"] == 1
                latencies.append(time.monotonic() - started)
        assert sorted(latencies)[10] < 0.1
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        thread.join()
        assert process.stderr is not None
        rest = process.stderr.read()
        assert rest.rstrip().endswith("longsight: interrupted")
        assert "Traceback" not in rest


def ignore_errors(url: str, body: dict[str, object]) -> None:
    """The server is stopped under this request; how its connection ends is not the point."""
    with suppress(httpx.HTTPError):
        httpx.post(url, json=body, timeout=60)


@pytest.mark.parametrize("kept", [False, True])
def test_files_go_with_the_server_unless_told_where_to_stay(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, files = tmp_path / "tmp", tmp_path / "files"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with serve(*(["--files-dir", str(files)] if kept else []), "--max-model-len", "1000") as (process, url):
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
            file = client.files.create(file=("a.jsonl", b"{}"), purpose="batch")
        number = file.id.removeprefix("file-")
        assert len(list(temporary.glob(f"longsight-files-*/content/{number}"))) == (not kept)
        # What service managers send; Ctrl-C is above.
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert list(temporary.glob("longsight-files-*")) == []
    assert (files / "content" / number).exists() == kept


def test_a_port_in_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "constructed", "--port", str(port)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"longsight: error: cannot listen on 127.0.0.1 port {port}: Address already in use\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/no/such/model"], "/no/such/model"),
        (["constructed", "--kv-memory", "9"], "hold 0 pages"),
        (["constructed", "--host", "256.0.0.1"], "cannot listen on 256.0.0.1"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--port", "0", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("longsight: error: ")
    assert words in err
    assert err.count("\n") == 1


def test_serve_with_keys_and_limits(tmp_path: Path) -> None:
    database = str(tmp_path / "keys.db")
    command = [sys.executable, "-m", "longsight.cli.main", "keys", "create", "alice", "--auth", database]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
    options = ("--auth", database, "--limit", "rpm=1", "--max-model-len", "4096", "--threads", "1")
    with serve(*options) as (process, url):
        fields: dict[str, Any] = {"model": "longsight", "prompt": "abcabcabc", "max_tokens": 2}
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
            with pytest.raises(openai.AuthenticationError):
                client.completions.create(**fields)
            client.api_key = text
            (card,) = client.models.list()
            assert card.model_dump()["guaranteed_context"] == 4096
            client.completions.create(**fields)
            with pytest.raises(openai.RateLimitError):
                client.completions.create(**fields)
        process.terminate()
        assert process.stderr is not None
        rest = process.stderr.read()
        assert "WARNING: requests may have 4,096 tokens, less than the guaranteed context of 524,288" in rest
        assert text not in rest


def announced(process: subprocess.Popen[str], count: int) -> str:
    assert process.stderr is not None
    return "".join(process.stderr.readline() for _ in range(count))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_start_says_where_everything_is(host: str) -> None:
    """Page, base URLs and model, at addresses that work from here, under the root path."""
    with serve("--host", host, "--root-path", "/ai", "--max-model-len", "1000") as (process, url):
        lines = announced(process, 5 if host == "0.0.0.0" else 4)
        root = url.removesuffix("/v1")
        assert root.endswith("/ai")
        page, anthropic_url, description = f"{root}/", f"{root}/anthropic", f"{root}/openapi.json"
        for words in (page, url, anthropic_url, description, "'longsight'", "docs"):
            assert words in lines
        assert ("every other address" in lines) == (host == "0.0.0.0")
        assert "<title>Longsight" in httpx.get(page, headers={"accept": "text/html"}).text
        assert httpx.get(description).json()["servers"] == [{"url": "/ai"}]
        assert httpx.head(anthropic_url).status_code == 200


def test_https_from_the_command_line(tmp_path: Path) -> None:
    authority = trustme.CA()
    files = tmp_path / "chain.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(files)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    command = [*COMMAND, "constructed", "--max-model-len", "1000", "--ssl-certfile", str(files)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            first = announced(process, 1)
            assert " on https://127.0.0.1:" in first
            models = httpx.get(f"{first.rsplit(' on ', 1)[1].strip()}/models", verify=context).json()
            assert models["data"][0]["id"] == "longsight"
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--root-path", "ai"], "--root-path is 'ai'"),
        (["--root-path", "/ai/"], "--root-path is '/ai/'"),
        (["--forwarded-allow-ips", "proxy"], "'proxy' in --forwarded-allow-ips"),
        (["--host", "http://127.0.0.1"], "'http://127.0.0.1' is not a host"),
        (["--host", "localhost:8000"], "'localhost:8000' is not a host"),
        (["--host", ""], "'' is not a host"),
        (["--allow-url-host", "https://example.org/"], "'https://example.org/' is not a host"),
        (["--port", "65536"], "'65536' is not a port"),
        (["--ssl-certfile", "/no/such/file"], "'/no/such/file'"),
        (["--ssl-certfile", __file__], "in PEM format"),
        (["--ssl-keyfile", __file__], "--ssl-keyfile needs --ssl-certfile"),
        (["--otel", "nonsense"], "'nonsense'"),
        (["--otel", "grpc://127.0.0.1:4317"], "'grpc://127.0.0.1:4317'"),
        (["--log-level", "loud"], "'loud'"),
        (["--log-format", "xml"], "'xml'"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_the_start(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: Any = main(["serve", "constructed", "--port", "0", *options])
    except SystemExit as error:
        code = error.code
    assert code in (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
