"""How long a client will wait."""

from __future__ import annotations

import math
import time

from starlette.requests import Request

# What the official clients send: seconds of silence after which they hang up.
HEADERS = ("x-stainless-timeout", "x-stainless-read-timeout")


def deadline_of(request: Request, *, stream: bool = False) -> float | None:
    """When the client gives up, in time.monotonic() seconds; None if it doesn't say, or says nonsense.

    The clients count silence, not the whole: a whole answer must be there by then, while a stream, which is never
    silent for long, has no deadline.
    """
    if stream:
        return None
    for name in HEADERS:
        try:
            seconds = float(request.headers.get(name, ""))
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds > 0:
            return time.monotonic() + seconds
    return None
