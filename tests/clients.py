"""Client programs from package registries, installed once and kept: in $LONGSIGHT_TEST_CLIENTS or the user's cache.

They stay out of the tests' own environment, whose versions are not theirs to choose. Where a registry is out of reach
the test is skipped and says so; where an installation fails, it fails.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest

INSTALL_SECONDS = 300


def npm_client(package: str, version: str, command: str) -> Path:
    """The command of an npm package."""
    return npm_packages(f"{package}@{version}") / ".bin" / command


def npm_packages(*packages: str) -> Path:
    """The node_modules folder of packages, each as name@version."""
    npm = shutil.which("npm")

    def install(prefix: Path) -> None:
        assert npm is not None
        run([npm, "install", "--no-audit", "--no-fund", "--prefix", str(prefix), *packages])

    def ready() -> None:
        if npm is None or shutil.which("node") is None:
            pytest.skip(f"{' '.join(packages)} come from npm, and npm or node is not installed here")
        reach("npm", (npm, "ping", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"))

    return kept("npm", packages, ready, install) / "node_modules"


def python_packages(*packages: str) -> Path:
    """The Python of an environment that holds packages, each as a pip requirement."""

    def install(prefix: Path) -> None:
        run([sys.executable, "-m", "venv", str(prefix)])
        run([str(prefix / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages])

    def ready() -> None:
        pip = (sys.executable, "-m", "pip", "--retries", "1", "--timeout", "30")
        name = re.split("[<>=!~ ]", packages[0])[0]
        reach("the Python package index", (*pip, "index", "versions", name))

    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # Scripts in bin/ name the folder of the installation, which has moved since; `python -m` goes everywhere.
    return kept(version, packages, ready, install) / "bin" / "python"


def kept(kind: str, packages: Sequence[str], ready: Callable[[], None], install: Callable[[Path], None]) -> Path:
    """The folder in which exactly these packages are installed, now or earlier."""
    home = Path(os.environ.get("LONGSIGHT_TEST_CLIENTS") or Path.home() / ".cache" / "longsight-test-clients")
    folder = home / f"{kind}-{hashlib.sha256(' '.join(packages).encode()).hexdigest()[:16]}"
    if folder.exists():
        return folder
    ready()
    home.mkdir(parents=True, exist_ok=True)
    # Installed beside and moved: nobody finds half an installation.
    staging = Path(tempfile.mkdtemp(dir=home))
    try:
        install(staging)
        if not folder.exists():
            staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def reach(registry: str, command: tuple[str, ...]) -> None:
    """Skip the test if the command that asks the registry gets no answer."""
    silence = unanswered(command)
    if silence is not None:
        pytest.skip(f"{registry} does not answer, and this client comes from there: {silence}")


@cache
def unanswered(command: tuple[str, ...]) -> str | None:
    """What the command said of its failure, and None if it did not fail. Asked once for all tests."""
    asked = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    return asked.stderr[-500:] if asked.returncode else None


def run(command: Sequence[str]) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, env=environment)
    assert done.returncode == 0, f"{' '.join(command)} failed: {done.stderr[-2000:]}"


def client_environment(home: Path, **more: str) -> dict[str, str]:
    """Nothing of the user's own but the path: a client's settings and keys are those in `home`."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "NO_COLOR": "1", **more}
