"""Which tests reach somebody else's package, by their own imports and by those of what they import.

Tests of kernels, pages and scheduling need PyTorch only, which has a bound of its own: new releases of other packages
cannot break them.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACES = (ROOT / "src", ROOT / "tests", ROOT)
OURS = {"longsight", "bench", "recipes"}
APART = {"torch", "numpy", "pytest", "hypothesis", *sys.stdlib_module_names}


def interface_tests() -> list[str]:
    """Test files, as paths from the root."""
    return [str(file.relative_to(ROOT)) for file in sorted((ROOT / "tests").rglob("test_*.py")) if reached(file)]


def reached(start: Path) -> set[str]:
    """The packages of others that a file reaches."""
    found: set[str] = set()
    seen: set[Path] = set()
    queue = [start]
    while queue:
        if (file := queue.pop()) in seen:
            continue
        seen.add(file)
        for name in imports(file):
            if (own := module(name)) is not None:
                queue.append(own)
            elif (package := name.split(".")[0]) not in APART | OURS:
                found.add(package)
    return found


@cache
def imports(file: Path) -> frozenset[str]:
    """The modules that a file names, at its top or inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # `from package import name`: the name may be a module of it.
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(name for name in names if module(name) is not None or module(name.rpartition(".")[0]) is None)


def module(name: str) -> Path | None:
    """The file of one of our modules."""
    if not name:
        return None
    for place in PLACES:
        for file in (place / f"{name.replace('.', '/')}.py", place / name.replace(".", "/") / "__init__.py"):
            if file.exists():
                return file
    return None


if __name__ == "__main__":
    print(*interface_tests(), sep="\n")
