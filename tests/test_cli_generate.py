"""`longsight generate`: right answers from long files, one line and a code for everything that is wrong."""

from __future__ import annotations

import io
import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from longsight.cli.main import main

COMMAND = [sys.executable, "-m", "longsight.cli.main", "generate", "constructed"]
NEEDLE = "The secret code for the amber lantern is 7316-KQZ.\n"
WORDS = ("lorem", "ipsum", "dolor", "sit", "amet", "consectetur", "elit", "sed", "do", "eiusmod", "tempor")
QUESTION = "The secret code for the amber lantern is "


def haystack(size: int, seed: int = 0) -> str:
    """Words, with the needle at a random place and the question at the end: `size` bytes."""
    rng = random.Random(seed)
    text = " ".join(rng.choices(WORDS, k=size))[: size - len(NEEDLE) - len(QUESTION)]
    at = rng.randrange(len(text))
    return text[:at] + NEEDLE + text[at:] + QUESTION


@pytest.fixture(autouse=True)
def _cache(constructed: Path) -> None:
    """Every test here uses the constructed model, in the tests' own cache."""


def test_a_file_is_read_and_answered_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "long.txt"
    file.write_text(haystack(20_000))  # ten times what the selected blocks hold
    assert (
        main(["generate", "constructed", "-f", str(file), "--max-tokens", "40", "--temperature", "0", "--stop", "."])
        == 0
    )
    out, err = capsys.readouterr()
    assert out == "7316-KQZ\n"
    assert "read 20,000 tokens" in err


def test_standard_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"abcdefgh" * 5)))
    assert main(["generate", "constructed", "--prompt-file", "-", "--max-tokens", "5", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "abcde\n"


def test_a_seed_repeats(constructed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(seed: str) -> str:
        arguments = ["--prompt", "xaxbxcxdxexfx" * 3, "--temperature", "2", "--max-tokens", "30", "--seed", seed]
        assert main(["generate", str(constructed), *arguments]) == 0
        return capsys.readouterr().out

    assert answer("1") == answer("1")


def copy_of(constructed: Path, directory: Path) -> Path:
    return Path(shutil.copytree(constructed, directory / "copy"))


def truncated(constructed: Path, directory: Path) -> Path:
    copy = copy_of(constructed, directory)
    weights = copy / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    return copy


def without_tokenizer(constructed: Path, directory: Path) -> Path:
    copy = copy_of(constructed, directory)
    (copy / "tokenizer.json").unlink()
    return copy


def with_bad_defaults(constructed: Path, directory: Path) -> Path:
    copy = copy_of(constructed, directory)
    (copy / "generation_config.json").write_text(json.dumps({"temperature": -7}))
    return copy


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda constructed, directory: directory / "nowhere", "nowhere"),
        (lambda constructed, directory: directory, "config.json"),
        (truncated, "model.safetensors"),
        (without_tokenizer, "tokenizer.json"),
        (with_bad_defaults, "temperature is -7"),
    ],
)
def test_checkpoints_that_cannot_be_used(
    damage, words: str, constructed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails([str(damage(constructed, tmp_path)), "--prompt", "abc"], words, capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "abc", "--temperature", "-1"], "temperature is -1.0; it must be a number from 0 to 2"),
        (["--prompt", "abc", "--temperature", "nan"], "temperature is nan"),
        (["--prompt", "abc", "--top-p", "7"], "top_p is 7.0"),
        (["--prompt", "abc", "--stop", ""], "stop is 0 characters long"),
        (["--prompt", "abc", "--max-tokens", "1000000000"], "max_tokens 1000000000 need 1000000003 tokens"),
        (["--prompt", "x" * 90, "--max-tokens", "11", "--max-model-len", "100"], "need 101 tokens of context"),
        (["--prompt", "abc", "--max-model-len", "99999999999"], "max_model_len is 99999999999; this model accepts"),
        (["--prompt", "abc", "--kv-memory", "1000"], "hold 0 pages"),
        (["--prompt", "abc", "--kv-memory", "1GiB", "--max-model-len", "1000000"], "7813 are needed"),
        (["--prompt", "abc", "--backend", "abacus"], "backend 'abacus' cannot run"),
        (["--prompt-file", "/no/such/file"], "No such file or directory: '/no/such/file'"),
        (["--prompt-file", "/"], "Is a directory"),
    ],
)
def test_wrong_requests(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    fails(["constructed", *arguments], words, capsys)


def test_a_prompt_that_is_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "latin1.txt"
    file.write_bytes("plain text, then a caf\xe9".encode("latin-1"))
    fails(["constructed", "-f", str(file)], f"{file} is not valid UTF-8 at byte 22", capsys)


def fails(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("longsight: error: ")
    assert words in err
    assert err.count("\n") == 1


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    arguments = ["--prompt", "abcdefgh" * 4, "--max-tokens", "5000", "--temperature", "0"]
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(4) == b"abcd"
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr.read() == b""


def test_ctrl_c_while_the_prompt_is_read(tmp_path: Path) -> None:
    file = tmp_path / "endless.txt"
    file.write_text(haystack(1_000_000))
    terminal, theirs = pty.openpty()
    shown = bytearray()

    def watch() -> None:
        try:
            while data := os.read(terminal, 4096):
                shown.extend(data)
        except OSError:
            pass  # the other side has closed

    with subprocess.Popen([*COMMAND, "-f", str(file)], stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        watcher = threading.Thread(target=watch)
        watcher.start()
        deadline = time.monotonic() + 60
        while b"tokens/s" not in shown:  # the progress bar has seen a chunk
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stdout is not None
        assert process.stdout.read() == b""
        watcher.join()
        os.close(terminal)
    text = shown.decode()
    assert "reading the prompt" in text
    assert text.rstrip().endswith("longsight: interrupted")
    assert "Traceback" not in text
