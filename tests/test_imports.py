"""Imports flow one way, and the core needs none of the extras."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import longsight

ROOT = Path(longsight.__file__).parent
ORDER = ("ops", "model", "train", "hf", "engine", "chat", "evals", "server", "cli")
SERVING = ("engine", "chat", "server")  # needs nothing of what trains, nor of the transformers library
EXTRAS = (
    *("starlette", "uvicorn", "pydantic", "jinja2", "python_multipart", "sqlalchemy", "httpx"),
    *("prometheus_client", "opentelemetry"),
    *("openai", "anthropic", "matplotlib", "scipy", "psutil", "transformers", "gguf"),
)


def imported_packages(path: Path) -> set[str]:
    """Packages of longsight that a file imports anywhere, in functions and type-checking blocks too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError(f"{path}: relative import; write the full name")
            names = [node.module or ""]
            if node.module == "longsight":
                names = [f"longsight.{alias.name}" for alias in node.names]
        parts = [name.split(".") for name in names]
        found |= {part[1] for part in parts if part[0] == "longsight" and len(part) > 1}
    return found


def test_every_package_is_in_the_order() -> None:
    assert {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()} == set(ORDER)


@pytest.mark.parametrize("package", ORDER)
def test_no_arrow_points_back_up(package: str) -> None:
    above = set(ORDER[ORDER.index(package) + 1 :])
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert not imported_packages(path) & above, path


@pytest.mark.parametrize("package", SERVING)
def test_serving_needs_no_trainer(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert not {"train", "hf"} & imported_packages(path), path


def test_a_wrong_arrow_would_be_seen(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from longsight.server.app import create_app\n    import longsight.cli.main\n")
    assert imported_packages(wrong) == {"server", "cli"}


@pytest.mark.parametrize("module", ["longsight", "longsight.ops", "longsight.model", "longsight.engine"])
def test_the_core_imports_without_extras(module: str) -> None:
    code = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)
sys.meta_path.insert(0, Blocked())
import {module}
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_the_package_lists_what_it_exports_and_stays_light() -> None:
    code = """
import sys
import longsight
assert set(longsight.__all__) <= set(dir(longsight)), dir(longsight)
assert not {"torch", "numpy", "tokenizers", "llguidance"} & set(sys.modules), sorted(sys.modules)
for name in longsight.__all__:
    assert getattr(longsight, name) is not None
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)
