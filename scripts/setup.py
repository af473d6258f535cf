"""Create `.venv` and install this checkout into it, every package at the version in `locks/python.txt`.

    python3 scripts/setup.py demo               # what `make demo` needs
    python3 scripts/setup.py dev                # everything: tests, benches, linters
    python3 scripts/setup.py dev --torch cuda   # with PyTorch's CUDA build
    LONGSIGHT_VENV=/opt/longsight python3 scripts/setup.py server --from .
                                                # an installation that does not need the checkout any more

Needs Python 3.11 or newer with the venv module, and a C++ compiler. Uses the standard library only: it runs before
anything is installed. uv does the work, because it takes hashes from a constraints file, pins build requirements too,
and knows where PyTorch keeps its builds. A second run with the same lock changes nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# LONGSIGHT_VENV and LONGSIGHT_LOCK: another place, another lock (scripts/canary.py looks ahead with them).
VENV = ROOT / os.environ.get("LONGSIGHT_VENV", ".venv")
LOCK = ROOT / os.environ.get("LONGSIGHT_LOCK", "locks/python.txt")
UV = ROOT / "locks" / "uv.txt"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
# Which lock and which build of PyTorch the environment holds.
MARK = VENV / "longsight-lock.txt"
SOURCES = [ROOT / "pyproject.toml", ROOT / "CMakeLists.txt", *sorted((ROOT / "csrc").glob("*"))]


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("extra", help="which of the extras in pyproject.toml to install, such as demo or dev")
    parser.add_argument(
        "--torch",
        choices=("cpu", "cuda", "index"),
        default=os.environ.get("TORCH") or "cpu",
        help="PyTorch's build: cpu (default; no CUDA packages), cuda (for this machine's driver), "
        "index (whatever the configured package index has)",
    )
    parser.add_argument(
        "--from",
        dest="source",
        metavar="PATH",
        type=Path,
        help="install this wheel, sdist or source tree; default: this checkout, editable",
    )
    arguments = parser.parse_args()
    try:
        create()
        forget_other_locks(arguments.torch)
        install_torch(arguments.torch)
        install_longsight(arguments.extra, arguments.source)
    except subprocess.CalledProcessError as error:
        command = " ".join(str(part) for part in error.cmd)
        sys.exit(f"setup: `{command}` failed (exit {error.returncode}); its message is above")


def create() -> None:
    """An environment with pip and uv. One made from another lock is made again: nothing of it is left behind."""
    if sys.version_info < (3, 11):  # noqa: UP036  (this file runs before pyproject.toml is read)
        sys.exit(
            f"setup: Python {sys.version.split()[0]} is too old; Longsight needs 3.11 or newer: make PYTHON=python3.12"
        )
    if not PYTHON.exists():
        try:
            venv.create(VENV, with_pip=True, symlinks=os.name != "nt")
        except (subprocess.CalledProcessError, ImportError):
            sys.exit("setup: python3 cannot create environments; on Debian and Ubuntu: apt install python3-venv")
    if not installed("uv", version(UV, "uv")):
        run(PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r", UV)


def forget_other_locks(torch: str) -> None:
    """Empty the environment if it was filled from another lock or with another build of PyTorch."""
    mark = f"{hashlib.sha256(LOCK.read_bytes()).hexdigest()} torch-{torch}\n"
    if MARK.exists() and MARK.read_text() == mark:
        return
    strangers = uv("pip", "freeze", "--exclude-editable", capture=True).splitlines()
    names = [line.split("==")[0].split(" @")[0] for line in strangers]
    if names := [name for name in names if name not in ("pip", "uv")]:
        uv("pip", "uninstall", "--quiet", *names)
    MARK.write_text(mark)


def install_torch(build: str) -> None:
    """PyTorch in the wanted build: with it there, nothing that follows asks for CUDA packages.

    The lock says the version only. Each of the builds has hashes of its own, and the lock has those of one.
    """
    wanted = version(LOCK, "torch")
    if installed("torch", wanted):
        return
    torch = ("pip", "install", "--no-deps", f"torch=={wanted}")
    if build == "cuda":
        uv(*torch, "--torch-backend", "auto")
    elif build == "index":
        uv(*torch)
    elif not (uv_offers(*torch, "--no-index") or uv_offers(*torch, "--torch-backend", "cpu")):
        print("setup: PyTorch's own index does not answer; taking the build of the package index, which may be CUDA's")
        uv(*torch)


def install_longsight(extra: str, source: Path | None) -> None:
    """This checkout, editable, or a copy of `source`; an extra's packages and what builds the kernels as locked."""
    stamp, everything = VENV / f".installed-{extra}", VENV / ".installed-dev"
    newest = max(path.stat().st_mtime for path in [LOCK, MARK, *SOURCES])
    if source is None and any(done.exists() and done.stat().st_mtime > newest for done in (stamp, everything)):
        return
    what = ("--editable", f"{ROOT}[{extra}]") if source is None else (f"{source.resolve(strict=True)}[{extra}]",)
    locked = ("--constraint", LOCK, "--build-constraint", LOCK)
    uv("pip", "install", *locked, "--reinstall-package", "longsight-engine", *what)
    if source is None:
        stamp.touch()


def uv_offers(*arguments: object) -> bool:
    """Whether uv could do it; its complaint is not shown."""
    return subprocess.run(uv_command(arguments), env=environment(), capture_output=True, check=False).returncode == 0


def uv(*arguments: object, capture: bool = False) -> str:
    done = subprocess.run(
        uv_command(arguments), env=environment(), check=True, text=True, stdout=subprocess.PIPE if capture else None
    )
    return done.stdout or ""


def uv_command(arguments: tuple[object, ...]) -> list[str]:
    return [str(PYTHON), "-m", "uv", *map(str, arguments)]


def environment() -> dict[str, str]:
    """uv does not read pip's settings: what people set for pip (a mirror, a folder of wheels) holds here too."""
    carried = {
        "UV_DEFAULT_INDEX": os.environ.get("PIP_INDEX_URL"),
        "UV_FIND_LINKS": ",".join(os.environ.get("PIP_FIND_LINKS", "").split()),
    }
    pip = {name: value for name, value in carried.items() if value}
    # Without it a failed compile leaves an installation that runs on the slow reference.
    kernels = {"LONGSIGHT_REQUIRE_KERNELS": "1"}
    return {**kernels, **pip, **os.environ, "VIRTUAL_ENV": str(VENV)}


def installed(name: str, wanted: str) -> bool:
    """Whether the environment has the package in that version, whatever its build."""
    found = [*VENV.glob(f"[lL]ib/**/site-packages/{name}-{wanted}.dist-info")]
    return bool(found or [*VENV.glob(f"[lL]ib/**/site-packages/{name}-{wanted}+*.dist-info")])


def version(lock: Path, name: str) -> str:
    found = re.search(rf"^{name}==([^\s;]+)", lock.read_text(), re.MULTILINE)
    if found is None:
        sys.exit(f"setup: {lock} has no line '{name}==...'; write it with `make lock`")
    return found[1]


def run(*command: object) -> None:
    subprocess.run([*map(str, command)], check=True)


if __name__ == "__main__":
    main()
