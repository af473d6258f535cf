"""Usage records for the metering tests."""

from __future__ import annotations

import random
from typing import Any

from longsight.server.usage import UsageRecord

NOON = 1_795_262_400.0  # 2026-11-21 12:00 UTC


def record(request_id: str = "req_1", **changes: Any) -> UsageRecord:
    fields: dict[str, Any] = {
        "request_id": request_id,
        "caller": "key_1",
        "organisation": "acme",
        "dialect": "openai",
        "endpoint": "/v1/chat/completions",
        "model": "MiniMax-M3",
        "service_tier": "standard",
        "prompt_tokens": 1000,
        "cached_tokens": 0,
        "completion_tokens": 100,
        "reasoning_tokens": 0,
        "status": "ok",
        "finish_reason": "stop",
        "started": NOON,
        "ttft_s": 0.5,
        "duration_s": 1.5,
    }
    return UsageRecord(**fields | changes)


def random_record(rng: random.Random, number: int) -> UsageRecord:
    """Cache hits, both tiers and their boundaries, aborts, errors, free models, three days."""
    prompt = rng.choice((rng.randrange(1, 4000), rng.randrange(500_000, 540_000), 524_288, 524_289, 1_000_000))
    completion = rng.randrange(0, 5000)
    status = rng.choice(("ok", "ok", "ok", "cancelled", "error"))
    return record(
        f"req_{number}",
        caller=f"key_{rng.randrange(5)}",
        organisation=f"org_{rng.randrange(3)}",
        model=rng.choice(("MiniMax-M3", "minimax/minimax-m3", "MiniMax-M2", "longsight")),
        service_tier=rng.choice(("standard", "priority")),
        prompt_tokens=prompt,
        cached_tokens=rng.choice((0, 0, rng.randrange(prompt + 1), prompt)),
        completion_tokens=completion,
        reasoning_tokens=rng.randrange(completion + 1),
        status=status,
        finish_reason="stop" if status == "ok" else None,
        started=NOON + rng.randrange(3) * 86_400 + rng.random(),
        ttft_s=rng.choice((None, rng.random())),
        duration_s=rng.random() * 100,
    )
