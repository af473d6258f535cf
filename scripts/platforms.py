"""Print for which Pythons and systems every locked package has a wheel, so that installing needs no compiler.

    .venv/bin/python scripts/platforms.py                 # what `longsight serve` takes
    .venv/bin/python scripts/platforms.py --extra dev     # everything

Asks the package index, and installs nothing. docs/install.md has the result.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import setup  # type: ignore[import-not-found]

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
SYSTEMS = {
    "Linux x86-64": "x86_64-manylinux_2_31",
    "Linux aarch64": "aarch64-manylinux_2_31",
    "macOS 14 arm64": "aarch64-apple-darwin",
    "macOS 14 x86-64": "x86_64-apple-darwin",
    "Windows x86-64": "x86_64-pc-windows-msvc",
}
NO_WHEEL = re.compile(r"Because (?:only )?([\w.-]+?)[=<>]\S+ has no (?:usable )?wheels")


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--extra", default="server", help="which extra of pyproject.toml; default: server")
    extra = parser.parse_args().extra
    print(f"| without a wheel | {' | '.join(PYTHONS)} |\n|---|{'---|' * len(PYTHONS)}")
    for system, platform in SYSTEMS.items():
        cells = [", ".join(missing(extra, python, platform)) or "none" for python in PYTHONS]
        print(f"| {system} | {' | '.join(cells)} |", flush=True)


def missing(extra: str, python: str, platform: str) -> list[str]:
    """Packages whose locked version has no wheel for a Python version on a platform. Raises SystemExit for any other
    reason that they cannot be installed."""
    found: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        excluded = Path(scratch, "excluded.txt")
        while True:
            excluded.write_text("".join(f"{name}\n" for name in found))
            command = [
                *(sys.executable, "-m", "uv", "pip", "install", "--dry-run", "--target", f"{scratch}/none"),
                *("--python-version", python, "--python-platform", platform, "--only-binary", ":all:"),
                *("--constraint", str(setup.LOCK), "--excludes", str(excluded)),
                *("-r", str(setup.ROOT / "pyproject.toml"), "--extra", extra),
            ]
            environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return found
            reason = " ".join(done.stderr.split())
            named = NO_WHEEL.search(reason)
            if named is None or named[1] in found:
                sys.exit(f"platforms: Python {python} on {platform}: {reason}")
            found.append(named[1])


if __name__ == "__main__":
    main()
