"""Log-probabilities in the forms of the two OpenAI endpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from longsight.engine import TokenLogprob

Spell = Callable[[Sequence[int]], str]  # token ids -> text
IMPOSSIBLE = -9999.0  # in the place of minus infinity, which JSON cannot write; the protocol's own choice


def for_chat(entries: Sequence[TokenLogprob], spell: Spell) -> dict[str, Any]:
    """The `logprobs` of a chat choice or of a chunk of it."""
    content = [
        {**_token(e.token, e.logprob, spell), "top_logprobs": [_token(token, p, spell) for token, p in e.top]}
        for e in entries
    ]
    return {"content": content, "refusal": None}


def for_text(entries: Sequence[TokenLogprob], spell: Spell, offset: int = 0) -> dict[str, Any]:
    """The `logprobs` of a text choice or of a chunk of it; offset: characters of the answer before it."""
    texts = [spell([e.token]) for e in entries]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [_finite(e.logprob) for e in entries],
        "top_logprobs": [{spell([token]): _finite(p) for token, p in e.top} for e in entries],
        "text_offset": offsets,
    }


def _token(token: int, logprob: float, spell: Spell) -> dict[str, Any]:
    text = spell([token])
    # A token may be a part of a character, whose bytes the text does not show.
    known = None if "\ufffd" in text else list(text.encode())
    return {"token": text, "logprob": _finite(logprob), "bytes": known}


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else IMPOSSIBLE
