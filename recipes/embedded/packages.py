"""Debian packages: fetched with apt-get, read without being installed or unpacked to disk."""

from __future__ import annotations

import gzip
import re
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from recipes.embedded.extract import sword_blocks


class PackageError(RuntimeError):
    """A package that cannot be had or must not be used."""


def fetch(packages: Sequence[str], directory: Path, progress: Callable[[int, int], None]) -> dict[str, Path]:
    """The .deb file of each package, downloaded where `directory` does not hold it yet.

    progress: told (packages done, in all). Raises PackageError naming those that apt-get cannot download.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    missing = []
    for done, package in enumerate(packages):
        progress(done, len(packages))
        if not (found := sorted(directory.glob(f"{package}_*.deb"))):
            part = directory / "part"  # an interrupted download never gets a finished one's place
            part.mkdir(exist_ok=True)
            run = subprocess.run(["apt-get", "download", package], cwd=part, capture_output=True, text=True)
            found = sorted(part.glob(f"{package}_*.deb"))
            if run.returncode or not found:
                missing.append(f"{package} ({(run.stderr.strip().splitlines() or ['no message'])[-1]})")
                continue
            found = [found[-1].rename(directory / found[-1].name)]
        files[package] = found[-1]
    if missing:
        raise PackageError(
            f"cannot download {', '.join(missing)}; the list is of Debian 12 (bookworm), main section, and apt-get "
            "update must have run"
        )
    return files


def version(deb: Path) -> str:
    """Raises PackageError for a package that is not of the main section."""
    fields = ("Version", "Section")
    run = subprocess.run(["dpkg-deb", "-f", deb, *fields], capture_output=True, text=True, check=True)
    found = dict(line.split(": ", 1) for line in run.stdout.splitlines())
    if found["Section"].startswith(("non-free", "contrib")):
        raise PackageError(f"{deb.name} is of section {found['Section']}; expected one of Debian's main")
    return found["Version"]


def notice(package: str) -> re.Pattern[str]:
    """Matches the whole path of a package's copyright file."""
    return re.compile(rf"usr/share/doc/{re.escape(package)}/copyright(\.gz)?")


def members(deb: Path, takes: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """(path, text) of the files that `takes` wants, unpacked where compressed; those that are no UTF-8 are left out.

    A SWORD module gives one text a book or chapter. Raises PackageError for a damaged package.
    """
    indexes: dict[str, bytes] = {}
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            for member in tar:
                path = member.name.removeprefix("./")
                sword = path.endswith((".bzs", ".czs"))
                if not member.isfile() or not (sword or takes(path)):
                    continue
                file = tar.extractfile(member)
                content = file.read() if file else b""
                if sword:
                    indexes[path[:-1]] = content
                elif path[:-1] in indexes:
                    for number, text in enumerate(sword_blocks(indexes[path[:-1]], content)):
                        yield f"{path}#{number}", text
                elif (text_or_none := _text(path, content)) is not None:
                    yield path, text_or_none
        if process.wait():
            raise PackageError(f"dpkg-deb cannot read {deb}: remove it and run again")


def _text(path: str, content: bytes) -> str | None:
    try:
        return (gzip.decompress(content) if path.endswith((".gz", ".dz")) else content).decode()
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error):
        return None
