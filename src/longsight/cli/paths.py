"""Types of options that name files and directories, checked before a command does anything else.

A type turns the text into a path when the command line is parsed; `problem` says what is wrong with it after that, when
all options are known to be spelled right. What only the file system can tell, when it is used, is explained in main.py.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import re
import stat
from pathlib import Path

BUILT_IN_MODELS = ("embedded", "constructed")  # as longsight.model.built_in has them, which brings torch along


LEDGER_SCHEMES = ("postgresql", "sqlite")
KEY_SCHEMES = ("postgresql", "sqlite", "mysql", "mariadb", "oracle", "mssql")  # SQLAlchemy's own


class PathType:
    """wants: what is accepted, in words."""

    def __init__(self, wants: str) -> None:
        self.wants = wants

    def __call__(self, text: str) -> Path | str:
        if not text or "\0" in text:
            raise argparse.ArgumentTypeError(f"{text!r} is no path; it must be {self.wants}")
        return Path(text)

    def problem(self, path: Path | str) -> str | None:
        """What is wrong with the path and what would be right; None if it can be used."""
        try:
            return self._check(path)
        except OSError as error:
            return self._no(error.errno or errno.EIO, path)

    def _check(self, path: Path | str) -> str | None:
        """`problem`, for one kind of path. May raise OSError."""
        raise NotImplementedError

    def _no(self, number: int, path: Path | str) -> str:
        return f"{os.strerror(number)}: {str(path)!r}; it must be {self.wants}"


class InputFile(PathType):
    """A file to read. stdin: "-" is accepted, and stays a Path."""

    def __init__(self, wants: str = "a file that can be read", *, stdin: bool = False) -> None:
        super().__init__(wants)
        self.stdin = stdin

    def _check(self, path: Path | str) -> str | None:
        if self.stdin and str(path) == "-":
            return None
        if (problem := _unreadable(path)) is not None:
            return self._no(problem, path)
        return self._no(errno.EISDIR, path) if Path(path).is_dir() else None


class InputPath(PathType):
    """A file or a directory to read."""

    def __init__(self, wants: str = "a file or a directory that can be read") -> None:
        super().__init__(wants)

    def _check(self, path: Path | str) -> str | None:
        number = _unreadable(path)
        return None if number is None else self._no(number, path)


class OutputDirectory(PathType):
    """A directory to write to; it is made, with those above it, if it is missing."""

    def __init__(self, wants: str = "a directory that can be written, or be made") -> None:
        super().__init__(wants)

    def _check(self, path: Path | str) -> str | None:
        number = _unwritable_directory(Path(path))
        return None if number is None else self._no(number, path)


class NewDirectory(OutputDirectory):
    """A directory to make. empty: it may also exist, with nothing in it."""

    def __init__(self, *, empty: bool = False) -> None:
        super().__init__(f"a directory that {'is empty or ' * empty}does not exist yet, where one can be made")
        self.empty = empty

    def _check(self, path: Path | str) -> str | None:
        path = Path(path)
        if path.exists() and not (self.empty and path.is_dir() and not any(path.iterdir())):
            return f"{str(path)!r} exists already; it must be {self.wants}"
        return super()._check(path)


class OutputFile(PathType):
    """A file to write, in a directory that exists."""

    def __init__(self, wants: str = "a file in a directory that exists and can be written") -> None:
        super().__init__(wants)

    def _check(self, path: Path | str) -> str | None:
        number = _unwritable_file(Path(path))
        return None if number is None else self._no(number, path)


class Database(PathType):
    """An SQLite file, to write or with `existing` to read, or a URL with one of the schemes; stays a text."""

    def __init__(self, schemes: tuple[str, ...], *, existing: bool = False) -> None:
        file = "an SQLite file" if existing else "an SQLite file in a directory that exists and can be written"
        super().__init__(f"{file}, or a URL ({', '.join(f'{scheme}://' for scheme in schemes)})")
        self.schemes, self.existing = schemes, existing

    def __call__(self, text: str) -> str:
        return str(super().__call__(text)) if "://" not in text else text

    def _check(self, path: Path | str) -> str | None:
        text = str(path)
        if "://" in text:
            scheme = text.partition("://")[0]
            if scheme.partition("+")[0] not in self.schemes:
                return f"the URL's scheme is {scheme!r}; it must be {self.wants}"
            return None  # what else is wrong its driver knows
        file = Path(text).expanduser()
        if self.existing:
            number = errno.EISDIR if file.is_dir() else _unreadable(file)
        else:
            number = _unwritable_file(file)
        return None if number is None else self._no(number, text)


class ModelDirectory(PathType):
    """A checkpoint's directory, or with `built_in` the name of a built-in model; stays a text.

    file: the config.json itself is accepted too.
    """

    def __init__(self, *, built_in: bool = True, file: bool = False) -> None:
        names = f", or the name of a built-in model: {' or '.join(BUILT_IN_MODELS)}" if built_in else ""
        what = "a directory with config.json and safetensors files" + ", or a config.json" * file
        super().__init__(f"{what}{names}")
        self.built_in, self.file = built_in, file

    def __call__(self, text: str) -> str:
        super().__call__(text)
        return text

    def _check(self, path: Path | str) -> str | None:
        text, path = str(path), Path(path)
        if self.built_in and text in BUILT_IN_MODELS:
            return None
        if self.file and path.is_file():
            return None if (number := _unreadable(path)) is None else self._no(number, path)
        if not path.is_dir():
            reason = f"{text!r} is not a directory"
            if near := difflib.get_close_matches(text, BUILT_IN_MODELS if self.built_in else (), n=1):
                reason += f" (did you mean {near[0]}?)"
            elif not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", text):
                reason += " (nothing is downloaded here; fetch the model's files first)"
            return f"{reason}; expected {self.wants}"
        if not (path / "config.json").is_file():
            return f"{text!r} has no config.json; expected {self.wants}"
        return None if (number := _unreadable(path / "config.json")) is None else self._no(number, path)


def _unreadable(path: Path | str) -> int | None:
    """The errno that reading would meet."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return error.errno
    return None if os.access(path, os.R_OK | (os.X_OK if stat.S_ISDIR(mode) else 0)) else errno.EACCES


def _unwritable_directory(path: Path) -> int | None:
    """The errno that making the directory, and a file in it, would meet."""
    for existing in (path, *path.absolute().parents):
        try:
            mode = os.stat(existing).st_mode
        except FileNotFoundError:
            continue
        except OSError as error:
            return error.errno
        if not stat.S_ISDIR(mode):
            return errno.ENOTDIR
        return None if os.access(existing, os.W_OK | os.X_OK) else _why_not(existing)
    return errno.ENOENT


def _unwritable_file(path: Path) -> int | None:
    """The errno that opening the file to write would meet."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        try:
            if not stat.S_ISDIR(os.stat(path.parent).st_mode):
                return errno.ENOTDIR
        except OSError as error:
            return error.errno
        return None if os.access(path.parent, os.W_OK | os.X_OK) else _why_not(path.parent)
    except OSError as error:
        return error.errno
    if stat.S_ISDIR(mode):
        return errno.EISDIR
    return None if os.access(path, os.W_OK) else _why_not(path)


def _why_not(path: Path) -> int:
    """EROFS on a file system that is mounted read-only; else permission is what lacks."""
    if os.name == "nt":
        return errno.EACCES
    return errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
