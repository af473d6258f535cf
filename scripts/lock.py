"""Write the locks: every package, asked for directly or not, at one version, with its hashes.

    make lock               # after a change of a bound: what is locked stays as it is where it can
    make lock UPGRADE=1     # every package as new as the bounds allow

`locks/python.txt` is for pyproject.toml with all its extras. The other files in `locks/` are for programs that tests
run in environments of their own, each from the `.in` file beside it; `tests/js/package-lock.json` is for node's. uv
resolves once for every Python and platform; where they differ, a line carries a marker. No lock names an index.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "locks"
NODE = ROOT / "tests" / "js" / "package-lock.json"
COMPILE = (
    *("pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"),
    *("--no-emit-index-url", "--no-emit-find-links", "--no-header", "--no-annotate"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upgrade", action="store_true", help="raise every package to the newest its bound allows")
    upgrade = ["--upgrade"] if parser.parse_args().upgrade else []
    before = locked()
    uv(*COMPILE, *upgrade, "--all-extras", "pyproject.toml", "-o", "locks/python.txt")
    # What setup.py installs first, to install the rest with.
    (version,) = pins(LOCKS / "python.txt")["uv"]
    uv(*COMPILE, "-", "-o", "locks/uv.txt", text=f"uv=={version}\n")
    for program in sorted(LOCKS.glob("*.in")):
        uv(*COMPILE, *upgrade, f"locks/{program.name}", "-o", f"locks/{program.stem}.txt")
    lock_node(upgrade=bool(upgrade))
    after = locked()
    for where, name in sorted({*before, *after}):
        if (was := before.get((where, name))) != (now := after.get((where, name))):
            print(f"{where}: {name} {' or '.join(was or ('not locked',))} -> {' or '.join(now or ('gone',))}")


def lock_node(*, upgrade: bool) -> None:
    npm = shutil.which("npm")
    if npm is None:
        print(f"npm is not installed: {NODE.relative_to(ROOT)} stays as it is")
        return
    options = ("--package-lock-only", "--omit-lockfile-registry-resolved", "--no-audit", "--no-fund", "--silent")
    subprocess.run([npm, "update" if upgrade else "install", *options], cwd=NODE.parent, check=True)


def locked() -> dict[tuple[str, str], tuple[str, ...]]:
    """What each lock has of each package."""
    found = {(lock.stem, name): at for lock in LOCKS.glob("*.txt") for name, at in pins(lock).items()}
    node = json.loads(NODE.read_text())["packages"] if NODE.exists() else {}
    return found | {("node", path): (entry["version"],) for path, entry in node.items() if path}


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
