"""What a request has cost, once it is over, and who wants to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Status = Literal["ok", "cancelled", "error"]


@dataclass(frozen=True)
class UsageRecord:
    """One HTTP request that generated, or tried to. prompt_tokens include the cached ones, completion_tokens the
    reasoning. started: Unix seconds; ttft_s: until the first generated token, None if there was none."""

    request_id: str
    caller: str
    organisation: str
    dialect: str
    endpoint: str
    model: str
    service_tier: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    status: Status
    finish_reason: str | None
    started: float
    ttft_s: float | None
    duration_s: float


class Cost(Protocol):
    """What a request is charged. usd_micro: millionths of a US dollar."""

    @property
    def usd_micro(self) -> int: ...
    def header(self) -> str: ...
    def as_json(self) -> dict[str, object]: ...


class Meter(Protocol):
    """Keeps records. Called on a worker thread, before the last byte of the answer is sent."""

    def settle(self, record: UsageRecord) -> Cost | None: ...
