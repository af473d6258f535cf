"""Build `dist/`: the sdist, and a wheel from that sdist, with build tools at the versions in `locks/python.txt`.

    make wheel
    .venv/bin/python scripts/wheel.py --out DIR

The wheel has the kernels for every instruction set and no code for one Python version: one file for all of them. On
Linux auditwheel finds which symbols of the C library the kernels use, and gives the wheel the manylinux tag for them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import setup  # type: ignore[import-not-found]

BIN = Path(sys.executable).parent


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=setup.ROOT / "dist", metavar="DIR", help="default: dist")
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for built in build(Path(scratch)):
                print(shutil.move(built, out / built.name))
        except subprocess.CalledProcessError as error:
            command = " ".join(map(str, error.cmd))
            sys.exit(f"wheel: `{command}` failed (exit {error.returncode}); its message is above")


def build(scratch: Path) -> list[Path]:
    """The sdist and the wheel, in a scratch directory."""
    # A wheel without kernels would install anywhere and run nowhere.
    environment = setup.environment()
    # auditwheel looks for patchelf along PATH.
    environment["PATH"] = f"{BIN}{os.pathsep}{environment.get('PATH', '')}"

    def run(module: str, *arguments: object) -> None:
        subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)], cwd=setup.ROOT, env=environment, check=True
        )

    run("uv", "build", "--quiet", "--build-constraint", setup.LOCK, "--out-dir", scratch, setup.ROOT)
    if sys.platform == "linux":
        (plain,) = scratch.glob("*.whl")
        run("auditwheel", "repair", "--wheel-dir", scratch, plain)
        plain.unlink()
    return [*scratch.glob("*.tar.gz"), *scratch.glob("*.whl")]


if __name__ == "__main__":
    main()
