"""The pages for people: their snippets run, and what they list is what the code has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

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
