"""What the pages promise: links lead somewhere, and the README's Python answers as it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from test_cli_serve import serve

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    broken = []
    for target in LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_every_page_is_reached_from_the_readme() -> None:
    found, queue = set[Path](), [ROOT / "README.md"]
    while queue:
        page = queue.pop()
        if page in found:
            continue
        found.add(page)
        targets = (target.partition("#")[0] for target in LINK.findall(page.read_text()))
        queue += [file for t in targets if t.endswith(".md") and (file := (page.parent / t).resolve()).exists()]
    missing = [page for page in (ROOT / "docs").rglob("*.md") if page not in found]
    assert not missing


def test_the_python_of_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    blocks = [block.replace("\n    ", "\n").strip() for block in re.findall(r"\n((?:    .*\n)+)", text)]
    client, library = (block for block in blocks if block.startswith("from "))
    with serve(model=None) as (_, base_url):
        script = f"{client}\n{library}".replace("http://127.0.0.1:8000/v1", base_url)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    one, three = done.stdout.splitlines()
    assert "4417-KQX" in one
    assert three.count("4417-KQX") == 3
