"""Every install line in the tree names this distribution, a package that the project uses, or a local path."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from longsight import extras

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKED = set(re.findall(r"^([\w.-]+)==", (ROOT / "locks" / "python.txt").read_text(), re.MULTILINE))
KNOWN = {
    # Client programs that docs/clients.md describes.
    "pip": {"litellm", "mcp", "tenacity"},
    "npm": {"@openai/codex", "@anthropic-ai/claude-code", "ai", "openai", "@anthropic-ai/sdk", "playwright"},
}
INSTALLERS = {
    "pip": r"(?:pip3?|uv\s+pip)\s+(?:install|download)|uv\s+(?:add|tool\s+(?:install|run))|uvx|pipx\s+(?:install|run)",
    "npm": r"npm\s+(?:install|i|ci|exec)|npx|pnpm\s+add|yarn\s+add|bun\s+add",
    "apt": r"apt(?:-get)?\s+install",
}
# Options of the installers that take a value, which is no package.
WITH_VALUE = {"-r", "-c", "-p", "-t", "--requirement", "--constraint", "--build-constraint", "--python", "--target"}
WITH_VALUE |= {"--prefix", "--torch-backend", "--find-links", "--index-url", "--python-version", "--python-platform"}


def files() -> Iterator[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout: which files belong to the tree is unknown")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path.parent.name != "locks" and path != Path(__file__):
            yield path


def install_lines(text: str) -> Iterator[tuple[str, str]]:
    """(installer, the words after it up to the end of the command) for each install line of a text."""
    text = re.sub(r"\\\n\s*", " ", text)  # continued lines of shells and Dockerfiles
    for installer, pattern in INSTALLERS.items():
        for found in re.finditer(rf"(?<![\w-])(?:{pattern})[ \t]+([^\n`]*)", text):
            yield installer, re.split(r"\s+(?:&&|\|\||[|>#])|;\s|[;,)]?\"?$|\)", found[1])[0]


def packages(words: str) -> list[str]:
    """Names of packages in the arguments of an installer; local paths and options left out."""
    try:
        tokens = shlex.split(words)
    except ValueError:  # a quotation mark of the sentence around the line
        tokens = words.replace("'", " ").replace('"', " ").split()
    names = []
    options = iter(tokens)
    for token in options:
        if token in WITH_VALUE:
            next(options, None)
        elif not token.startswith(("-", ".", "/", "$", "{", "dist/", "~")) and not token.endswith(".whl"):
            names.append(token)
    return names


def bare(installer: str, name: str) -> str:
    """A package's name without its version and extras."""
    if installer == "npm":
        return re.split(r"(?<=.)@", name)[0]
    return re.split(r"[\[<>=!~;@ ]", name)[0].lower().replace("_", "-").rstrip(":.,")


def strangers(text: str) -> list[str]:
    """Packages in a text's install lines that are neither ours nor known. Debian's are all known, and none is ours."""
    allowed = {**KNOWN, "pip": KNOWN["pip"] | LOCKED | {PROJECT["name"]}}
    return [
        name
        for installer, words in install_lines(text)
        for name in packages(words)
        if ("longsight" in name if installer == "apt" else bare(installer, name) not in allowed[installer])
    ]


def test_no_install_line_names_a_strangers_package() -> None:
    found = 0
    for path in files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += sum(1 for _ in install_lines(text))
        assert strangers(text) == [], path.relative_to(ROOT)
        # Also in lines put together from pieces: the import name never carries an extra.
        assert not re.search(r"\blongsight\[\w+[\],]", text), path.relative_to(ROOT)
    assert found >= 10  # the collector still sees them


@pytest.mark.parametrize(
    "line",
    [
        "try: pip install 'longsight[otel]'",
        "needs `pip install longsight` first",
        "    python3 -m pip install -U longsight==0.1",
        "RUN uv pip install --python /opt/x \\\n    longsight",
        "uv tool install longsight",
        "pipx run longsight serve",
        "uvx longsight serve",
        "npm install -g longsight@1",
        "apt install longsight",
        'f"pip install {flags} longsight"',
    ],
)
def test_the_collector_sees(line: str) -> None:
    assert [name for name in strangers(line) if name.startswith("longsight")]


@pytest.mark.parametrize("extra", sorted({*extras.EXTRA_OF.values(), "postgres"}))
@pytest.mark.parametrize("has_pip", [True, False])
def test_errors_print_the_line_for_this_environment(extra: str, has_pip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: has_pip or None)
    line = extras.install_command(extra)
    assert sys.executable in line
    assert packages(next(install_lines(line))[1]) == [f"{PROJECT['name']}[{extra}]"]
    assert extra in PROJECT["optional-dependencies"]


def test_each_optional_module_is_of_the_extra_named_for_it() -> None:
    def requirements(extra: str) -> set[str]:
        names: set[str] = set()
        for requirement in PROJECT["optional-dependencies"][extra]:
            if requirement.startswith(f"{PROJECT['name']}["):
                for inner in requirement.split("[")[1].rstrip("]").split(","):
                    names |= requirements(inner)
            names.add(bare("pip", requirement))
        return names

    transitive = {"anyio": "starlette", "opentelemetry": "opentelemetry-sdk"}
    for module, extra in extras.EXTRA_OF.items():
        assert transitive.get(module, module.replace("_", "-")) in requirements(extra), module
