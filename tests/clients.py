"""Command-line clients from npm, installed once and kept: in $LONGSIGHT_TEST_CLIENTS or the user's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

INSTALL_SECONDS = 300


def npm_client(package: str, version: str, command: str) -> Path:
    """The command of an npm package. Skips the test where npm or its registry is out of reach; fails where an
    installation does."""
    home = Path(os.environ.get("LONGSIGHT_TEST_CLIENTS") or Path.home() / ".cache" / "longsight-test-clients")
    prefix = home / f"{command}-{version}"
    binary = prefix / "node_modules" / ".bin" / command
    if binary.exists():
        return binary
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip(f"{package} comes from npm, and npm or node is not installed here")
    ping = subprocess.run([npm, "ping"], capture_output=True, text=True, timeout=INSTALL_SECONDS)
    if ping.returncode:
        pytest.skip(f"{package} comes from npm, whose registry does not answer: {ping.stderr[-500:]}")
    home.mkdir(parents=True, exist_ok=True)
    # Installed beside and moved: nobody finds half an installation.
    with tempfile.TemporaryDirectory(dir=home) as staging:
        done = subprocess.run(
            [npm, "install", "--no-audit", "--no-fund", "--prefix", staging, f"{package}@{version}"],
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
        )
        assert done.returncode == 0, f"{package}@{version} cannot be installed: {done.stderr[-2000:]}"
        if not prefix.exists():
            shutil.move(staging, prefix)
            Path(staging).mkdir()
    return binary


def client_environment(home: Path, **more: str) -> dict[str, str]:
    """Nothing of the user's own but the path: a client's settings and keys are those in `home`."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "NO_COLOR": "1", **more}
