"""Every command: Ctrl-C is one line and 130, and a reader that leaves early gets no complaint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from longsight.cli.main import COMMANDS

COMMAND = [sys.executable, "-m", "longsight.cli.main"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "{fifo}"],
        ["demo", "--out", "{new}", "--text", "{fifo}"],
        ["generate", "-f", "{fifo}"],
        ["tokenize", "{file}", "--tokenizer", "{fifo}", "--out", "{new}"],
        ["eval", "--out", "{new}", "--lengths", "256", "--qa", "{fifo}"],
        ["serve", "--port", "0", "--limits", "{fifo}"],
        ["serve", "--port", "0", "--ledger", "{new}", "--prices", "{fifo}"],
    ],
    ids=lambda arguments: " ".join(arguments[:1]),
)
def test_ctrl_c(arguments: list[str], tmp_path: Path) -> None:
    """While the command waits for a file that nobody writes: where it stands is then certain."""
    fifo, file = tmp_path / "fifo", tmp_path / "file.txt"
    os.mkfifo(fifo)
    file.write_text("some text\n" * 100)
    words = [argument.format(fifo=fifo, file=file, new=tmp_path / "new") for argument in arguments]
    with subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        guard = threading.Timer(120, process.kill)
        guard.start()
        try:
            writer = os.open(fifo, os.O_WRONLY)  # returns once the command reads
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
            os.close(writer)
        finally:
            guard.cancel()
            process.kill()
    assert process.returncode == 130, err
    assert out == ""
    assert err == "longsight: interrupted\n"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], *([command, "--help"] for command in COMMANDS), ["cost"], ["completion", "zsh"], ["--version"]],
    ids=" ".join,
)
def test_a_reader_that_leaves_early(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([*COMMAND, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120)
    finally:
        os.close(writer)
    assert done.stderr == ""
    assert done.returncode in (0, 1)  # argparse itself passes over what cannot be written of its help


def test_an_output_that_is_full_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "cost"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr == "longsight: error: [Errno 28] No space left on device\n"
