"""What one request, one key and one organisation may take: defaults, then a file, then flags."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from longsight.ops import LongsightError
from longsight.server.file_store import FileLimits
from longsight.sizes import parse_size

Kind = Literal["bytes", "count", "count or none", "zero or count"]
ACCEPTED = {
    "bytes": "a size of at least 1 byte, as 64MiB or 67108864",
    "count": "a whole number of at least 1",
    "count or none": "a whole number of at least 1, or none for no limit",
    "zero or count": "a whole number, 0 or more",
}
NONE = "none"


class LimitsError(LongsightError, ValueError):
    """A limit is unknown or has a value that makes no sense; the message names both and what is accepted."""


def _limit(default: int | None, kind: Kind, help: str) -> Any:
    return field(default=default, metadata={"kind": kind, "help": help})


@dataclass(frozen=True)
class Limits:
    """Every limit of the server. None: no limit."""

    body_bytes: int = _limit(64 * 2**20, "bytes", "of a request")
    image_bytes: int = _limit(10 * 2**20, "bytes", "of an image")
    images_per_request: int = _limit(200, "count", "images in a request")
    videos_per_request: int = _limit(5, "count", "videos in a request")
    video_inline_bytes: int = _limit(50 * 2**20, "bytes", "of a video inside a request")
    video_file_bytes: int = _limit(512 * 2**20, "bytes", "of an uploaded video")
    file_bytes: int = _limit(512 * 2**20, "bytes", "of any other uploaded file")
    video_file_seconds: int | None = _limit(7 * 24 * 3600, "count or none", "that an uploaded video is kept")
    # The engine refuses what is longer than the model's own context or the cache: a limit of ours only lowers that.
    context_tokens: int | None = _limit(None, "count or none", "prompt and answer of a request")
    guaranteed_context: int = _limit(
        524_288, "count", "the context that every request may have; longer ones are a class"
    )
    above_floor_concurrency: int = _limit(1, "zero or count", "requests above guaranteed_context that run at once")
    max_output_tokens: int = _limit(524_288, "count", "an answer, reasoning included")
    rpm: int | None = _limit(200, "count or none", "requests a minute of a key")
    tpm: int | None = _limit(10_000_000, "count or none", "tokens a minute of a key, input and output")
    concurrency: int | None = _limit(None, "count or none", "requests of a key that run at once")
    organisation_rpm: int | None = _limit(None, "count or none", "requests a minute of all keys of an organisation")
    organisation_tpm: int | None = _limit(None, "count or none", "tokens a minute of all keys of an organisation")
    organisation_concurrency: int | None = _limit(None, "count or none", "requests of an organisation that run at once")

    def __post_init__(self) -> None:
        for name, kind in KINDS.items():
            _check(name, kind, getattr(self, name))
        if self.context_tokens is not None and self.guaranteed_context > self.context_tokens:
            raise LimitsError(
                f"guaranteed_context {self.guaranteed_context} is more than context_tokens {self.context_tokens}; "
                f"it can be {self.context_tokens} at most"
            )

    @classmethod
    def load(cls, path: Path | None = None, flags: Sequence[str] = (), **base: int | None) -> Limits:
        """The defaults; over them `base`, the file's table [limits], KEY=VALUE flags. Raises LimitsError or OSError."""
        values: dict[str, int | None] = {**base}
        if path is not None:
            values |= _read(path)
        for flag in flags:
            name, equals, text = flag.partition("=")
            if not equals:
                raise LimitsError(f"{flag!r} is not KEY=VALUE; the keys are {', '.join(KINDS)}")
            values[name] = _value(name, text)
        return cls(**values)  # type: ignore[arg-type]

    def files(self) -> FileLimits:
        return FileLimits(
            self.image_bytes, self.video_file_bytes, self.file_bytes, video_seconds=self.video_file_seconds
        )

    def floor(self, max_model_len: int) -> int:
        """The context that every request may really have on an engine that holds so many tokens per request."""
        return min(self.guaranteed_context, max_model_len)

    def context(self, max_model_len: int) -> int:
        """The most tokens that a request may come to on such an engine."""
        return max_model_len if self.context_tokens is None else min(self.context_tokens, max_model_len)

    def floor_warning(self, max_model_len: int) -> str | None:
        """What to say at start if the engine cannot hold what is guaranteed."""
        if max_model_len >= self.guaranteed_context:
            return None
        return (
            f"requests may have {max_model_len:,} tokens, less than the guaranteed context of "
            f"{self.guaranteed_context:,}; /v1/models says {max_model_len:,}"
        )


KINDS: dict[str, Kind] = {f.name: f.metadata["kind"] for f in dataclasses.fields(Limits)}


def _read(path: Path) -> dict[str, int | None]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LimitsError(f"{path} is not TOML: {error}") from error
    for name, table in tables.items():
        if name != "limits" or not isinstance(table, dict):
            raise LimitsError(f"{path}: {name!r} is unknown; the file has one table, [limits]")
    try:
        return {name: _value(name, value) for name, value in tables.get("limits", {}).items()}
    except LimitsError as error:
        raise LimitsError(f"{path}: {error}") from error


def _value(name: str, value: object) -> int | None:
    """A value as it was written, in a flag or in a file."""
    kind = KINDS.get(name)
    if kind is None:
        close = difflib.get_close_matches(name, KINDS, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise LimitsError(f"the limit {name!r} is unknown; {hint}there are {', '.join(KINDS)}")
    read: object = value
    if isinstance(value, str):
        if kind == "bytes":
            try:
                read = parse_size(value)
            except ValueError:
                read = value
        elif kind == "count or none" and value.strip().lower() == NONE:
            read = None
        else:
            digits = value.strip().replace("_", "").replace(",", "")
            read = int(digits) if digits.isdecimal() and len(digits) < 20 else value
    return _check(name, kind, read, value)


def _check(name: str, kind: Kind, value: object, written: object = None) -> int | None:
    if value is None and kind == "count or none":
        return None
    least = 0 if kind == "zero or count" else 1
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
        shown = value if written is None else written
        raise LimitsError(f"the limit {name} is {shown!r}; it must be {ACCEPTED[kind]}")
    return value
