"""Options of the command line: sizes, numbers, and one line for what is wrong."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from longsight.cli.main import main
from longsight.cli.options import byte_size, port, positive


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8000000000", 8_000_000_000),
        ("8GiB", 8 * 2**30),
        ("8 gib", 8 * 2**30),
        ("8G", 8 * 2**30),
        ("1.5GB", 1_500_000_000),
        ("512MiB", 512 * 2**20),
        ("3KB", 3000),
        ("2T", 2 * 2**40),
        ("7B", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert byte_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "8Q", "-8G", "8GiBs", "1e9", "nan"])
def test_sizes_that_make_no_sense(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size; write 8GiB"):
        byte_size(text)


def test_numbers() -> None:
    assert positive("1_000_000") == positive("1,000,000") == 1_000_000
    assert port("0") == 0
    for kind, text in ((positive, "0"), (positive, "-1"), (positive, "x"), (port, "65536"), (port, "-1")):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a"):
            kind(text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["generate"], "one of the arguments --prompt -f/--prompt-file is required"),
        (["generate", "--prompt", "x", "-f", "y"], "not allowed with argument"),
        (["generate", "--prompt", "x", "--max-tokens", "0"], "'0' is not a positive whole number"),
        (["generate", "--prompt", "x", "--kv-memory", "lots"], "'lots' is not a size"),
        (["generate", "--prompt", "x", "--dtype", "int4"], "invalid choice: 'int4'"),
        (["serve", "--port", "99999"], "'99999' is not a port"),
        (["serve", "--drain-seconds", "-1"], "'-1' is not a number of seconds, 0 or more"),
        (["serve", "--drain-seconds", "nan"], "'nan' is not a number of seconds, 0 or more"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("longsight: error: ")
    assert words in err
    assert err.count("\n") == 1


def test_the_missing_extra_for_traces_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert main(["serve", "--port", "0", "--otel", "http://127.0.0.1:4318"]) == 1
    assert capsys.readouterr().err == (
        "longsight: error: this command needs opentelemetry, which is not installed; "
        f"try: {sys.executable} -m pip install 'longsight-engine[otel]'\n"
    )


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in [m for m in sys.modules if m.startswith(("longsight.server", "longsight.chat.template"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["serve", "--port", "0"]) == 1
    assert capsys.readouterr().err == (
        "longsight: error: this command needs jinja2, which is not installed; "
        f"try: {sys.executable} -m pip install 'longsight-engine[server]'\n"
    )


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["generate", "--help"], ["--version"]])
def test_help_needs_no_torch(arguments: list[str]) -> None:
    code = f"""
import sys
from longsight.cli.main import main
try:
    main({arguments})
finally:
    assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "longsight" in done.stdout
    if arguments[-1] == "--help":
        assert "longsight serve" in done.stdout or "examples:" in done.stdout


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 4096 bytes. Error code 12 (Cannot allocate memory)"
        ),
    ],
)
def test_memory_that_runs_out_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr("longsight.cli.cost.run", run)
    assert main(["cost"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("longsight: error: out of memory")
    assert " that are free; close other programs" in err
    assert ".cpp" not in err
    assert err.count("\n") == 1
    assert ("asked for 4,096 bytes" in err) == isinstance(error, RuntimeError)
