"""Write `locks/`: every package that `pyproject.toml` asks for, directly or not, at one version, with its hashes.

    make lock               # after a change in pyproject.toml: what is locked stays as it is where it can
    make lock UPGRADE=1     # every package as new as the bounds allow

uv resolves once for every Python and platform; where they differ, a line carries a marker. A lock names no index.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "locks"
COMPILE = (
    *("pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"),
    *("--no-emit-index-url", "--no-emit-find-links", "--no-header", "--no-annotate"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="raise every package to the newest its bound allows")
    upgrade = ["--upgrade"] if parser.parse_args().upgrade else []
    before = pins(LOCKS / "python.txt")
    uv(*COMPILE, *upgrade, "--all-extras", "pyproject.toml", "-o", "locks/python.txt")
    after = pins(LOCKS / "python.txt")
    # What setup.py installs first, to install the rest with.
    (version,) = after["uv"]
    uv(*COMPILE, "-", "-o", "locks/uv.txt", text=f"uv=={version}\n")
    for name in sorted({*before, *after}):
        if (was := before.get(name)) != (now := after.get(name)):
            print(f"{name}: {' or '.join(was or ('not locked',))} -> {' or '.join(now or ('gone',))}")


def pins(lock: Path) -> dict[str, tuple[str, ...]]:
    """The versions that a lock has of each package, one for each of its markers."""
    found: dict[str, tuple[str, ...]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", lock.read_text() if lock.exists() else "", re.MULTILINE):
        found[name] = (*found.get(name, ()), version)
    return found


def uv(*arguments: str, text: str | None = None) -> None:
    subprocess.run([sys.executable, "-m", "uv", *arguments], cwd=ROOT, input=text, text=True, check=True)


if __name__ == "__main__":
    main()
