"""What options name is checked before anything else is done: files, directories, databases, models and URLs."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from longsight.cli.main import main, parser
from longsight.cli.paths import BUILT_IN_MODELS, PathType
from longsight.model import built_in
from test_cli_parser import ALL

TOML, MODEL = "a TOML file", "expected a directory with config.json"
NOBODY = 65534


def fails(arguments: list[str], *words: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(arguments)
    except SystemExit as error:  # wrong usage
        code = {2: 1}.get(error.code)  # type: ignore[arg-type]
    out, err = capsys.readouterr()
    assert code == 1
    assert out == ""
    assert err.startswith("longsight: error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def path_actions() -> list[tuple[str, argparse.Action]]:
    return [
        (prog, action) for prog, each in ALL.items() for action in each._actions if isinstance(action.type, PathType)
    ]


def test_every_option_that_takes_a_path_has_such_a_type() -> None:
    """By what their help calls the value; --api-key KEY and the like are not paths."""
    for prog, each in ALL.items():
        for action in each._actions:
            if "--root-path" in action.option_strings:
                continue  # a path of URLs
            if action.metavar in ("FILE", "DIR", "PATH", "DB", "FILE|URL", "CONFIG", "MODEL"):
                assert isinstance(action.type, PathType), f"{prog} {action.option_strings}"
    assert len(path_actions()) > 20


@pytest.mark.parametrize("value", ["", "a\0b"])
def test_an_empty_path_is_none(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    for prog, action in path_actions():
        name = "/".join(action.option_strings) or str(action.metavar)
        with pytest.raises(SystemExit):
            ALL[prog].parse_args([action.option_strings[-1], value] if action.option_strings else [value])
        err = capsys.readouterr().err
        assert f"argument {name}: {value!r} is no path; it must be " in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "{no}"], ["argument MODEL: ", "/no' is not a directory", MODEL]),
        (["serve", "{file}"], ["argument MODEL: ", "/file' is not a directory", MODEL]),
        (["serve", "{dir}"], ["argument MODEL: ", "/dir' has no config.json", MODEL]),
        (["generate", "embeded", "--prompt", "a"], ["argument MODEL: ", "(did you mean embedded?)"]),
        (["eval", "org/name", "--out", "{no}"], ["argument MODEL: ", "nothing is downloaded", MODEL]),
        (["convert", "org/name", "--text", "{file}", "--out", "{no}"], ["argument MODEL: ", "nothing is downloaded"]),
        (["cost", "{no}"], ["argument MODEL: ", "or a config.json"]),
        (["train", "{no}"], ["argument CONFIG: No such file or directory", TOML]),
        (["train", "{dir}"], ["argument CONFIG: Is a directory", TOML]),
        (["train", "{file}", "--out", "{file}"], ["argument --out: Not a directory"]),
        (["train", "{file}", "--out", "{file}/in"], ["argument --out: Not a directory"]),
        (
            ["tokenize", "{no}", "--train-vocab", "300", "--out", "{new}"],
            ["argument PATH: No such file", "a file or a"],
        ),
        (["tokenize", "{file}", "--tokenizer", "{no}", "--out", "{new}"], ["argument --tokenizer: No such file"]),
        (["tokenize", "{file}", "--train-vocab", "300", "--out", "{dir}"], ["argument --out: ", "exists already"]),
        (["convert", "{model}", "--text", "{file}", "{no}", "--out", "{new}"], ["argument --text: No such file"]),
        (["convert", "{model}", "--text", "{dir}", "--out", "{new}"], ["argument --text: Is a directory", "UTF-8"]),
        (["convert", "{model}", "--text", "{file}", "--out", "{model}"], ["argument --out: ", "exists already"]),
        (["eval", "--out", "{file}"], ["argument --out: Not a directory"]),
        (["eval", "--out", "{new}", "--qa", "{dir}"], ["argument --qa: Is a directory"]),
        (["eval", "--out", "{new}", "--text", "{no}"], ["argument --text: No such file"]),
        (["eval", "--out", "{new}", "--loss-text", "{file}", "{no}"], ["argument --loss-text: No such file"]),
        (["demo", "--out", "{file}/in"], ["argument --out: Not a directory"]),
        (["demo", "--text", "{no}"], ["argument --text: No such file", "a text file"]),
        (["generate", "-f", "{no}"], ["argument -f/--prompt-file: No such file", "or - for standard input"]),
        (["generate", "-f", "{dir}"], ["argument -f/--prompt-file: Is a directory"]),
        (["generate", "-f", "{file}", "--kv-dir", "{file}"], ["argument --kv-dir: Not a directory"]),
        (["serve", "--kv-dir", "{file}/in"], ["argument --kv-dir: Not a directory"]),
        (["serve", "--files-dir", "{file}"], ["argument --files-dir: Not a directory"]),
        (["serve", "--chat-template", "{no}"], ["argument --chat-template: No such file", "Jinja"]),
        (["serve", "--limits", "{dir}"], ["argument --limits: Is a directory", TOML]),
        (["serve", "--signing-key", "{no}/key"], ["argument --signing-key: No such file"]),
        (["serve", "--signing-key", "{dir}"], ["argument --signing-key: Is a directory"]),
        (["serve", "--ledger", "{no}/l.db"], ["argument --ledger: No such file", "an SQLite file"]),
        (["serve", "--ledger", "{dir}"], ["argument --ledger: Is a directory"]),
        (
            ["serve", "--ledger", "mysql://host/name"],
            ["argument --ledger: the URL's scheme is 'mysql'", "postgresql://"],
        ),
        (["serve", "--ledger", "{file}", "--prices", "{no}"], ["argument --prices: No such file"]),
        (["serve", "--auth", "{no}/keys.db"], ["argument --auth: No such file"]),
        (["serve", "--auth", "htp://host"], ["argument --auth: the URL's scheme is 'htp'", "postgresql://"]),
        (["keys", "list", "--auth", "{dir}"], ["argument --auth: Is a directory"]),
        (["keys", "create", "a", "--auth", "{file}/keys.db"], ["argument --auth: Not a directory"]),
        (["usage", "--ledger", "{no}"], ["argument --ledger: No such file"]),
        (["usage", "--ledger", "{dir}"], ["argument --ledger: Is a directory"]),
    ],
)
def test_a_path_that_cannot_be_used(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the command runs at all: no port, no model, no network."""
    (tmp_path / "file").write_text("text")
    (tmp_path / "dir").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    names = {name: tmp_path / name for name in ("no", "file", "dir", "new", "model")}
    before = sorted(tmp_path.rglob("*"))
    for name in ("serve", "generate", "train", "tokenize", "eval", "convert", "keys", "usage", "cost", "demo"):
        monkeypatch.setattr(f"longsight.cli.{name}.run", lambda args: pytest.fail("it runs"))
    fails([argument.format(**names) for argument in arguments], *words, capsys=capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_paths_are_checked_without_torch(tmp_path: Path) -> None:
    code = "import sys; from longsight.cli.main import main; code = main(['serve', '/no/such'])\n"
    code += "assert 'torch' not in sys.modules; sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("longsight: error: argument MODEL: '/no/such' is not a directory")


def test_what_can_be_used_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file"
    file.write_text("text")
    args = parser().parse_args(
        ["serve", "--kv-dir", "a/b/c", "--files-dir", "f", "--signing-key", "key", "--ledger", "l.db", "--auth", "k.db"]
    )
    assert args.kv_dir == Path("a/b/c")
    assert args.ledger == "l.db"
    args = parser().parse_args(
        ["serve", "--ledger", "postgresql+psycopg://me:secret@host/name", "--auth", "mysql://h/n"]
    )
    assert args.ledger == "postgresql+psycopg://me:secret@host/name"
    assert parser().parse_args(["generate", "-f", "-"]).prompt_file == Path("-")
    reader, writer = os.pipe()
    assert parser().parse_args(["generate", "-f", f"/dev/fd/{reader}"])  # as in `-f <(command)`; it is not opened
    os.close(reader)
    os.close(writer)
    for name in (*BUILT_IN_MODELS, None):
        assert parser().parse_args(["serve", *([name] if name else [])]).model == name
    assert sorted(tmp_path.iterdir()) == [file]


def test_the_built_in_models_are_those_of_the_model_package() -> None:
    assert BUILT_IN_MODELS == (built_in.EMBEDDED, built_in.CONSTRUCTED)


@pytest.mark.skipif(os.geteuid() != 0, reason="acts as another user")
def test_permissions(tmp_path: Path) -> None:
    """As a user who may read neither, nor write."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (tmp_path / "file").touch(mode=0o600)
    for folder in tmp_path.parents:
        folder.chmod(folder.stat().st_mode | 0o111)
    for arguments, option in (
        (["serve", "--kv-dir", str(closed / "in")], "--kv-dir"),
        (["serve", "--kv-dir", str(closed)], "--kv-dir"),
        (["serve", "--files-dir", str(tmp_path / "new")], "--files-dir"),
        (["serve", "--signing-key", str(tmp_path / "file")], "--signing-key"),
        (["serve", "--ledger", str(tmp_path / "new.db")], "--ledger"),
        (["generate", "-f", str(tmp_path / "file")], "-f/--prompt-file"),
        (["demo", "--out", str(tmp_path / "new")], "--out"),
        (["serve", str(closed)], "MODEL"),
    ):
        code = "import os, sys; from longsight.cli.main import main, parser\n"
        code += f"parser(); os.setuid({NOBODY}); sys.exit(main({arguments}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert f"argument {option}: Permission denied: '{arguments[-1]}'; it must be " in done.stderr


def test_what_only_use_can_tell_names_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """/proc says that it can be written, and then makes no directory."""
    fails(
        ["demo", "constructed", "--tokens", "3000", "--out", "/proc/nowhere"],
        "argument --out: ",
        "must be a dir",
        capsys=capsys,
    )


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "does not begin with http:// or https://"),
        ("127.0.0.1:4318", "does not begin with http:// or https://"),
        ("ftp://host", "does not begin with http:// or https://"),
        ("http://", "names no host"),
        ("http:///path", "names no host"),
        ("http://a b", "names no host"),
        ("http://host:port", "is not a URL"),
        ("http://host:99999", "is not a URL"),
        ("http://[::1", "is not a URL"),
        ("", "does not begin with http:// or https://"),
    ],
)
def test_urls_are_checked_at_the_start(url: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    fails(["serve", "--otel", url], f"argument --otel: {url!r} ", words, "http://127.0.0.1:4318", capsys=capsys)
