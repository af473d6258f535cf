"""What docs/install.md and docs/deployment.md state, against the project's files and the cost model."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from longsight.model.built_in import model_dir
from longsight.model.config import ModelConfig
from longsight.ops.cost import MINIMAX_M3, ModelShape, kv_bytes_per_token

ROOT = Path(__file__).parent.parent
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("install", "deployment")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def rows(page: str, first: str) -> list[list[str]]:
    """The cells of a page's table whose head begins with a cell."""
    (table,) = re.findall(rf"^\| {first} \|.*\n\|[-:|]+\|\n((?:\|.*\n)+)", PAGES[page], re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_extras_are_those_of_the_project() -> None:
    extras = PROJECT["optional-dependencies"]
    for name, purpose in rows("install", "Extra"):
        assert name.strip("`") in extras
        # "`server`, and ...": the extra brings the other one along.
        assert ("`server`, and" in purpose) == (f"{PROJECT['name']}[server]" in extras[name.strip("`")])
    inner = {"bench", "recipe", "dev"}  # for work on the project itself
    assert {name.strip("`") for name, _ in rows("install", "Extra")} == set(extras) - inner


def test_the_pythons_are_those_of_the_metadata() -> None:
    (first, last) = map(int, re.findall(r"Python 3\.(\d+) to 3\.(\d+) are supported", PAGES["install"])[0])
    listed = [name.split(" :: ")[-1] for name in PROJECT["classifiers"] if ":: Python :: 3." in name]
    assert listed == [f"3.{minor}" for minor in range(first, last + 1)]
    assert PROJECT["requires-python"] == f">=3.{first}"


def gibibytes(text: str) -> float:
    number, unit = text.split()
    return float(number) * {"MiB": 2**-10, "GiB": 1.0}[unit]


@pytest.mark.parametrize("model", ["embedded", "MiniMax-M3"])
def test_the_memory_is_what_the_cost_model_says(model: str) -> None:
    (row,) = [row for row in rows("install", "Model") if row[0].startswith(model)]
    shape: ModelShape = MINIMAX_M3
    if model == "embedded":
        directory = model_dir(model)
        shape = ModelConfig.from_file(directory / "config.json").shape()
        assert f"{(directory / 'model.safetensors').stat().st_size / 1e6:.1f} MB" == row[2]
    for cell, tokens in zip(row[3:], (131072, 1048576), strict=True):
        assert gibibytes(cell) == pytest.approx(kv_bytes_per_token(shape) * tokens / 2**30, rel=0.01)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[page]):
        name, _, anchor = target.partition("#")
        path = ROOT / "docs" / name if name else ROOT / "docs" / f"{page}.md"
        assert path.is_file(), target
        headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}


def test_setup_takes_the_options_that_the_pages_show() -> None:
    command = [sys.executable, ROOT / "scripts" / "setup.py", "--help"]
    helped = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line for text in PAGES.values() for line in re.findall(r"python3 scripts/setup\.py ([^`\n]*)", text)]
    assert len(lines) >= 4
    for line in lines:
        extra, *options = line.split()
        assert extra in PROJECT["optional-dependencies"]
        assert all(option in helped for option in options if option.startswith("--"))


def test_make_has_the_targets_that_the_pages_name() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {
        name for text in PAGES.values() for name in re.findall(r"(?:^    |`)make (?:\w+=\w+ )?([\w-]+)", text, re.M)
    }
    assert named
    assert named <= set(targets)
