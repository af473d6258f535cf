"""`longsight completion SHELL`, loaded in the real shells."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from longsight.cli.completion import SHELLS
from longsight.cli.main import COMMANDS, main

# Calls what `complete` has registered as bash does when Tab is pressed, and prints what it proposes.
BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
registered=$(complete -p longsight); function=${registered##*-F }
${function%% *} longsight "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def script(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", request.param]) == 0
    file = tmp_path / f"longsight.{request.param}"
    file.write_text(capsys.readouterr().out)
    return file


def proposals(*command: str | Path, cwd: Path | None = None) -> set[str]:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, cwd=cwd)
    assert done.stderr == ""
    return {line.split("\t")[0].rstrip("/ ") for line in done.stdout.splitlines() if line}


@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_bash_completes_commands_options_values_and_paths(script: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "mice.txt").touch()

    def complete(*words: str) -> set[str]:
        return proposals("bash", "--norc", "-c", BASH, "bash", script, "longsight", *words, cwd=tmp_path)

    assert complete("") >= set(COMMANDS)
    assert complete("se") == {"serve"}
    assert complete("serve", "--kv") == {"--kv-memory", "--kv-dir"}
    assert complete("serve", "--dtype", "") == {"bfloat16", "float32"}
    assert complete("keys", "cr") == {"create"}
    assert complete("keys", "create", "--org") == {"--organisation"}
    assert complete("completion", "f") == {"fish"}
    assert complete("serve", "--kv-dir", "m") == {"models"}
    assert complete("generate", "-f", "m") == {"models", "mice.txt"}


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
@pytest.mark.parametrize("script", ["fish"], indirect=True)
def test_fish_completes(script: Path) -> None:
    def complete(line: str) -> set[str]:
        return proposals("fish", "--no-config", "-c", f"source {script}; complete -C {line!r}")

    assert complete("longsight se") == {"serve"}
    assert complete("longsight serve --kv") == {"--kv-memory", "--kv-dir"}


@pytest.mark.parametrize("script", SHELLS, indirect=True)
def test_each_shell_can_read_its_script(script: Path) -> None:
    shell = script.suffix.removeprefix(".")
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    done = subprocess.run([shell, "-n", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["completion", "tcsh"])
    assert "bash" in capsys.readouterr().err
