"""Every parser of the repository: no abbreviations, the nearest name for a wrong one, and help that can be copied."""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from longsight.cli.main import main, parser
from longsight.cli.parser import Parser

ROOT = Path(__file__).parents[1]


def parsers(root: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield root
    for action in root._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


ALL = {each.prog: each for each in parsers(parser())}


@pytest.mark.parametrize("prog", ALL)
def test_no_option_may_be_abbreviated(prog: str, capsys: pytest.CaptureFixture[str]) -> None:
    each = ALL[prog]
    assert each.allow_abbrev is False
    assert isinstance(each, Parser)
    for option in each._option_string_actions:
        if option.startswith("--") and (short := option[:-1]) not in each._option_string_actions:
            with pytest.raises(SystemExit) as caught:
                each.parse_args([short])
            assert caught.value.code == 2
            assert f"there is no option {short}; did you mean " in capsys.readouterr().err


def test_nor_in_any_other_program_of_the_repository() -> None:
    found = 0
    for folder in ("src", "bench", "scripts", "recipes"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ArgumentParser"):
                    found += 1
                    options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    assert options.get("allow_abbrev") == "False", f"{file}, line {node.lineno}"
    assert found > 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--model", "X"], "the model is a positional argument: longsight serve MODEL"),
        (["serve", "--model=X"], "the model is a positional argument"),
        (["generate", "--model", "X", "--prompt", "a"], "the model is a positional argument: longsight generate MODEL"),
        (["eval", "--model", "X"], "the model is a positional argument"),
        (["serve", "--prot", "80"], "there is no option --prot; did you mean --port?"),
        (["serve", "--kv-mem", "8GiB"], "there is no option --kv-mem; did you mean --kv-memory?"),
        (["generate", "--promt", "x"], "there is no option --promt; did you mean --prompt?"),
        (["train", "a.toml", "--resme"], "did you mean --resume?"),
        (["keys", "create", "alice", "--organization", "x"], "did you mean --organisation?"),
        (["keys", "creat", "alice"], "invalid choice: 'creat'; did you mean create?"),
        (["serv"], "invalid choice: 'serv'; did you mean serve?"),
        (["demo", "embedded", "more"], "unrecognized arguments: more"),
    ],
)
def test_a_wrong_name_is_told_with_the_nearest_right_one(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["keys"]])
def test_a_command_alone_prints_its_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code in (0, None)
    out, err = capsys.readouterr()
    assert out.startswith("usage: longsight")
    assert err == ""


def snippets(each: argparse.ArgumentParser) -> list[str]:
    """The indented blocks of a parser's own texts, as they stand in its --help."""
    text = f"{each.description or ''}\n\n{each.epilog or ''}\n"
    return [textwrap.dedent(block) for block in re.findall(r"^(?:  .*\n(?:\n(?=  ))?)+", text, re.MULTILINE)]


def language(snippet: str) -> str:
    if snippet.startswith("["):
        return "toml"
    return "python" if re.match(r"(from|import) ", snippet) else "shell"


def help_snippets(wanted: str) -> list[str]:
    return [s for each in ALL.values() for s in snippets(each) if language(s) == wanted]


def test_python_in_help_compiles() -> None:
    found = help_snippets("python")
    assert found
    for snippet in found:
        compile(snippet, "help", "exec")


def test_configuration_in_help_can_be_read() -> None:
    found = help_snippets("toml")
    assert found
    for snippet in found:
        assert tomllib.loads(snippet)


def test_shell_lines_in_help_run_as_they_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a real shell, in which `longsight` only prints what it was called with; its parser must accept that."""
    monkeypatch.setattr(Parser, "_check_paths", lambda self, known: None)
    calls = 0
    for snippet in help_snippets("shell"):
        for line in re.sub(r"\\\n", " ", snippet).splitlines():
            for file in re.findall(r"< (\S+)", line):
                (tmp_path / file).touch()
            code = (
                'longsight() { printf "%s\\0" "$@" >&3; }; torchrun() { shift 4; longsight "$@"; }; cat() { :; }; '
                "source() { :; }; "
                f"{line}"
            )
            shell = ["bash", "-euc", f"exec 3>&1 >/dev/null\n{code}"]
            options = {"cwd": tmp_path, "stdin": subprocess.DEVNULL, "timeout": 60}
            done = subprocess.run(shell, capture_output=True, text=True, **options)  # type: ignore[call-overload]
            assert done.returncode == 0, (line, done.stderr)
            arguments = done.stdout.split("\0")[:-1]
            assert arguments, line
            parser().parse_args(arguments)  # SystemExit says what is wrong
            calls += 1
    assert calls > 30


def test_help_is_printed_as_it_was_written() -> None:
    for arguments in ([], ["serve"], ["keys"], ["keys", "create"]):
        command = [sys.executable, "-m", "longsight.cli.main", *arguments, "--help"]
        text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        for snippet in snippets(ALL[" ".join(["longsight", *arguments])]):
            assert textwrap.indent(snippet, "  ") in text
