"""The pages for people: their snippets run, and what they list is what the code has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from longsight.server import schema
from longsight.server.anthropic.fields import MessagesFields
from longsight.server.responses import fields as responses_fields
from longsight.server.responses.fields import ResponsesFields
from longsight.server.schema import ChatFields, CompletionFields
from longsight.train import parallel

DOCS = Path(__file__).parents[1] / "docs"


def snippets(page: str) -> str:
    """All Python of a page, in order: each snippet goes on from those before it."""
    found = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert found, page
    return "\n".join(found)


@pytest.mark.parametrize("page", ["operators.md", "python-api.md"])
def test_the_snippets_of_a_page_run(page: str) -> None:
    names: dict[str, Any] = {"__name__": page}
    exec(compile(snippets(page), page, "exec"), names)


def section(page: str, heading: str) -> str:
    return (DOCS / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]


def rows(text: str) -> dict[str, str]:
    """Each name that the first column of a table has in code style, with the rest of its row."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            names, rest = line[2:].split(" | ", 1)
            found |= dict.fromkeys(re.findall(r"`([^`]+)`", names), rest)
    return found


@pytest.mark.parametrize(
    ("heading", "kind", "refused"),
    [
        ("Chat completions", ChatFields, schema.UNSUPPORTED),
        ("Text completions", CompletionFields, schema.UNSUPPORTED),
        ("Responses", ResponsesFields, {**schema.UNSUPPORTED, **responses_fields.UNSUPPORTED}),
        ("Messages", MessagesFields, {}),
    ],
)
def test_the_tables_of_parameters_are_those_of_the_schemas(
    heading: str, kind: type[BaseModel], refused: Mapping[str, Any]
) -> None:
    own = rows(section("parameters.md", heading))
    documented = {**rows(section("parameters.md", "Sampling")), **own} if kind is not MessagesFields else own
    assert documented.keys() >= kind.model_fields.keys()
    for name, text in documented.items():
        told = "refused" if "| refused" in text else "ignored" if "| ignored" in text else "supported"
        found = "supported" if name in kind.model_fields else "refused" if name in refused else "ignored"
        assert told == found, name
    assert refused.keys() <= documented.keys()


def read_in(folder: Path) -> set[str]:
    """Environment variables that the code of a folder reads by their names."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        text = path.read_text()
        names |= set(re.findall(r"\bLONGSIGHT_[A-Z_]+\b", text))
        names |= set(re.findall(r"(?:environ\.get\(|environ\[|getenv\()\"([A-Z_]+)\"", text))
        for loop in re.findall(r"for \w+ in \(((?:\"[A-Z_]+\",? ?)+)\):\n\s+os\.environ", text):
            names |= set(re.findall(r"[A-Z_]+", loop))
    return names


def test_every_environment_variable_has_its_line() -> None:
    root = DOCS.parent
    documented = rows((DOCS / "environment.md").read_text()).keys()
    assert read_in(root / "src") | {name for name, _ in parallel._ENVIRONMENT} == documented
    others = {name for folder in ("scripts", "tests", "bench") for name in read_in(root / folder)}
    contributing = (root / "CONTRIBUTING.md").read_text()
    for name in sorted(n for n in others if n.startswith("LONGSIGHT_") and n not in documented):
        assert name in contributing, name


LITERAL = re.compile(r"\{[^{}]*\}|<[^<>]*>")


def test_the_errors_in_troubleshooting_are_in_the_source() -> None:
    """Each quoted message, its variable parts written <so>, is made of texts that some line of the source has."""
    source = "\n".join(p.read_text() for p in (DOCS.parent / "src").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # texts that go on in the next line
    quoted = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(quoted) > 10
    for message in quoted:
        for part in LITERAL.split(message):
            assert part.strip() in source, message
