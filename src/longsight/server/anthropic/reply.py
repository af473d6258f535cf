"""Answers as content blocks: the events of a stream, and the whole message, which is what those events come to."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from longsight.chat.answer import Finish
from longsight.chat.events import Arguments, CallEnd, CallStart, Content, Event, Reasoning
from longsight.server.answers import Piece
from longsight.server.exchange import Exchange, Usage
from longsight.server.signing import Signer

STOP_REASONS: Mapping[Finish, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "calls": "tool_use",
    "stop_string": "stop_sequence",
}


def usage(used: Usage, service_tier: str, exchange: Exchange | None = None) -> dict[str, Any]:
    """input_tokens are those that were read afresh; writing to the cache costs nothing and isn't counted apart."""
    found: dict[str, Any] = {
        "input_tokens": used.prompt - used.cached,
        "output_tokens": used.completion,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": used.cached,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens_details": {"thinking_tokens": used.reasoning},
        "server_tool_use": None,
        "service_tier": service_tier,
        "inference_geo": None,
    }
    if exchange is not None and exchange.cost is not None:
        found["cost"] = exchange.cost.as_json()
    return found


@dataclass
class Reply:
    """One answer, block by block. Feed it the pieces; a block that is begun ends with the next one or the answer.

    signer: signs the thinking, as the protocol wants; nothing depends on it, since thinking is taken back whoever
    signed it.
    """

    model: str
    signer: Signer
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    finish: Finish | None = None
    stop_string: str | None = None
    _blocks: list[dict[str, Any]] = field(default_factory=list)  # begun so far
    _open: bool = False
    _json: str = ""  # arguments of the call under way
    _unended: set[int] = field(default_factory=set)  # places of calls whose end has not come

    def start(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        return {"type": "message_start", "message": self._message([], usage)}

    def events(self, piece: Piece) -> Iterator[dict[str, Any]]:
        for event in piece.events:
            yield from self._event(event)
        if piece.finish is not None:
            self.finish, self.stop_string = piece.finish, piece.stop_string
            yield from self._close()

    def end(self, usage: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        delta = {"stop_reason": self._stop_reason, "stop_sequence": self.stop_string}
        yield {"type": "message_delta", "delta": delta, "usage": usage}
        yield {"type": "message_stop"}

    def whole(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        """A call that was cut off is no part of it: its arguments are not to be used."""
        return self._message([b for i, b in enumerate(self._blocks) if i not in self._unended], usage)

    @property
    def _stop_reason(self) -> str | None:
        return None if self.finish is None else STOP_REASONS[self.finish]

    def _message(self, content: Sequence[Mapping[str, Any]], usage: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "id": f"msg_{self.id}",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": self._stop_reason,
            "stop_sequence": self.stop_string,
            "stop_details": None,
            "container": None,
            "usage": usage,
        }

    def _event(self, event: Event) -> Iterator[dict[str, Any]]:
        match event:
            case Reasoning(text) if text:
                yield from self._within("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                self._blocks[-1]["thinking"] += text
                yield self._delta({"type": "thinking_delta", "thinking": text})
            case Content(text) if text:
                yield from self._within("text", {"type": "text", "text": "", "citations": []})
                self._blocks[-1]["text"] += text
                yield self._delta({"type": "text_delta", "text": text})
            case CallStart(index, name):
                yield from self._close()
                call_id = f"toolu_{self.id}{index:02}"
                caller = {"type": "direct"}
                yield from self._begin({"type": "tool_use", "id": call_id, "name": name, "input": {}, "caller": caller})
                self._unended.add(len(self._blocks) - 1)
                self._json = ""
            case Arguments(_, text) if text:
                self._json += text
                yield self._delta({"type": "input_json_delta", "partial_json": text})
            case CallEnd():
                self._blocks[-1]["input"] = json.loads(self._json or "{}")
                self._unended.discard(len(self._blocks) - 1)
                yield from self._close()

    def _within(self, kind: str, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if not self._open or self._blocks[-1]["type"] != kind:
            yield from self._close()
            yield from self._begin(block)

    def _begin(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self._blocks.append(block)
        self._open = True
        yield {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": dict(block)}

    def _delta(self, delta: Mapping[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _close(self) -> Iterator[dict[str, Any]]:
        if not self._open:
            return
        block = self._blocks[-1]
        if block["type"] == "thinking":
            block["signature"] = self.signer.mark(block["thinking"])
            yield self._delta({"type": "signature_delta", "signature": block["signature"]})
        self._open = False
        yield {"type": "content_block_stop", "index": len(self._blocks) - 1}
