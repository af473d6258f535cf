"""Log lines, as text or JSON. They tell who, what and how long, and never what was said: no prompts, no answers, no
keys, at no level."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import Any, Literal, TextIO

from longsight.server.access import CLIENT_GONE, Access

Format = Literal["text", "json"]
FORMATS: tuple[Format, ...] = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
log = logging.getLogger("longsight.access")

# Messages of these tell of the machine, or are our own. Others (KeyError, ValueError) may quote what a client sent.
_TELLING = (OSError, MemoryError, RuntimeError)
_WITHHELD = "(message withheld: it may quote a request)"


class _Handler(logging.Handler):
    """Writes to a stream, or to what is stderr at the time."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self.stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=self.stream or sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


def configure(form: Format = "text", level: str = "info", stream: TextIO | None = None) -> None:
    """Send all log lines to `stream` (None: stderr). Libraries' own are heard from warnings on, whatever the level."""
    handler = _Handler(stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    for other in root.handlers[:]:
        if type(other) in (_Handler, logging.StreamHandler):  # ours, and basicConfig's; not those of a test runner
            root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("longsight").setLevel(level.upper())


class TextFormatter(logging.Formatter):
    """Time (UTC, RFC 3339), level and message, then the fields of the event as key=value."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{timestamp(record)} longsight: {record.levelname}: {record.getMessage()}"
        line += "".join(f" {key}={_plain(value)}" for key, value in _fields(record).items())
        return line + (f"\n{traceback_of(record)}" if record.exc_info else "")


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, then the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = traceback_of(record)
        return json.dumps(line, ensure_ascii=False, default=str)


def timestamp(record: logging.LogRecord) -> str:
    """When it happened, as 2026-01-31T12:00:00.000Z (RFC 3339, UTC)."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{moment}.{int(record.msecs):03d}Z"


def traceback_of(record: logging.LogRecord) -> str:
    """Where it happened, with causes; exceptions that may quote a request are named without their message."""
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if error is None:
        return ""
    lines: list[str] = []
    for told in _chain(error):
        message = str(told) if isinstance(told, _TELLING) else _WITHHELD
        lines += traceback.format_tb(told.__traceback__)
        lines.append(f"{type(told).__module__}.{type(told).__qualname__}: {message}\n")
    return "Traceback (most recent call last, causes first):\n" + "".join(lines).rstrip()


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in found:
        found.insert(0, at)
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return found


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    found = getattr(record, "fields", None)
    return found if isinstance(found, dict) else {}


def _plain(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return json.dumps(text) if any(c <= " " or c in '"=' for c in text) else text


class AccessLog:
    """One line per request, when it has ended. Probes (health, readiness, metrics) are heard at debug level only."""

    QUIET = ("/health", "/ready", "/metrics")

    def ended(self, access: Access) -> None:
        level = logging.DEBUG if access.route in self.QUIET and access.status < 400 else logging.INFO
        if log.isEnabledFor(level):
            log.log(level, "request", extra={"fields": self._line(access)})

    def _line(self, access: Access) -> dict[str, Any]:
        record = access.record
        line: dict[str, Any] = {
            "method": access.method,
            # A path that is not ours may hold anything, a key that slipped into a URL for one.
            "path": access.route,
            "status": access.status or CLIENT_GONE,
            "request_id": access.request_id,
            "client": access.client,
            "key": access.caller,
            "duration_s": round(access.seconds, 4),
        }
        if access.key_name:
            line["key_name"] = access.key_name
        if access.retry:
            line["retry"] = access.retry
        if record is not None:
            line |= {
                "model": record.model,
                "dialect": record.dialect,
                "outcome": record.status,
                "finish_reason": record.finish_reason,
                "prompt_tokens": record.prompt_tokens,
                "cached_tokens": record.cached_tokens,
                "completion_tokens": record.completion_tokens,
                "reasoning_tokens": record.reasoning_tokens,
                "ttft_s": None if record.ttft_s is None else round(record.ttft_s, 4),
            }
        return line
