"""Client programs from package registries, installed once and kept: in $LONGSIGHT_TEST_CLIENTS or the user's cache.

They stay out of the tests' own environment, whose versions are not theirs to choose, and are locked as it is: node's
programs in tests/js/package-lock.json, Python's in locks/. With $LONGSIGHT_TEST_NEWEST, which `make canary` sets, they
are as new as their bounds allow. Where a registry is out of reach the test is skipped and says so; where an
installation fails, it fails.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest

INSTALL_SECONDS = 300
ROOT = Path(__file__).parents[1]
NODE = ROOT / "tests" / "js"
NEWEST = "LONGSIGHT_TEST_NEWEST"


def npm_client(command: str) -> Path:
    """A command of one of the packages in tests/js/package.json."""
    return npm_packages() / ".bin" / command


def npm_packages() -> Path:
    """The node_modules folder of tests/js/package.json."""
    npm = shutil.which("npm")
    newest = bool(os.environ.get(NEWEST))
    files = [NODE / "package.json"] if newest else [NODE / "package.json", NODE / "package-lock.json"]

    def install(prefix: Path) -> None:
        assert npm is not None
        for file in files:
            shutil.copy(file, prefix)
        run([npm, "install" if newest else "ci", "--no-audit", "--no-fund", "--prefix", str(prefix)])

    def ready() -> None:
        if npm is None or shutil.which("node") is None:
            pytest.skip("this client comes from npm, and npm or node is not installed here")
        reach("npm", (npm, "ping", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"))

    return kept("npm", files, ready, install) / "node_modules"


def python_client(name: str) -> Path:
    """The Python of an environment that holds what locks/NAME.txt says."""
    lock = ROOT / "locks" / f"{name}{'.in' if os.environ.get(NEWEST) else '.txt'}"
    uv = (sys.executable, "-m", "uv", "--quiet")

    def install(prefix: Path) -> None:
        run([*uv, "venv", "--clear", "--relocatable", "--python", sys.executable, str(prefix)])
        run([*uv, "pip", "install", "--python", str(prefix), "--requirements", str(lock)])

    def ready() -> None:
        asked = ("pip", "install", "--dry-run", "--python", sys.executable, "--requirements", str(lock))
        reach("the Python package index", (*uv, *asked))

    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return kept(version, [lock], ready, install) / "bin" / "python"


def kept(kind: str, locks: Sequence[Path], ready: Callable[[], None], install: Callable[[Path], None]) -> Path:
    """The folder in which exactly what these files say is installed, now or earlier."""
    home = Path(os.environ.get("LONGSIGHT_TEST_CLIENTS") or Path.home() / ".cache" / "longsight-test-clients")
    folder = home / f"{kind}-{hashlib.sha256(b''.join(lock.read_bytes() for lock in locks)).hexdigest()[:16]}"
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
