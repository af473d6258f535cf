"""Tokens to text while they are generated: whole characters only, and nothing that may still become a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
# A UTF-8 character has at most 4 bytes: text that still ends badly after this many tokens is no unfinished character.
MAX_PENDING_TOKENS = 8


class Decoder(Protocol):
    """What text needs of a tokenizer."""

    def decode(self, ids: Sequence[int]) -> str: ...


class Detokenizer:
    """Incremental decoding: each token costs the decoding of a few tokens, however long the answer is."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._ids: list[int] = []
        self._read = 0  # how many of _ids have been given out; they stay as left context of the next piece

    def push(self, token: int) -> str:
        self._ids.append(token)
        text = self._pending_text()
        if text.endswith(REPLACEMENT) and len(self._ids) - self._read < MAX_PENDING_TOKENS:
            return ""
        return self._take(text)

    def flush(self) -> str:
        """What is left at the end, an unfinished character as U+FFFD."""
        return self._take(self._pending_text())

    def _pending_text(self) -> str:
        # Decoding with the previous piece in front keeps joins that depend on it (a leading space, for one) right.
        before = self._decoder.decode(self._ids[: self._read])
        return self._decoder.decode(self._ids)[len(before) :]

    def _take(self, text: str) -> str:
        del self._ids[: self._read]
        self._read = len(self._ids)
        return text


class StopScanner:
    """Cuts a stream of text before the first stop string, wherever the pieces happen to be split.

    The match that ends first wins (of several, the one that starts first), which is what reading character by character
    gives: so the result doesn't depend on how the text was cut into pieces.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False
        self.found: str | None = None  # the stop string that has been found

    def push(self, text: str) -> str:
        """The part of the text that is safe to show. Sets `stopped` when a stop string is complete."""
        if not self._stop:
            return text
        held = self._held + text
        ends = [(start + len(s), start, s) for s in self._stop if (start := held.find(s)) >= 0]
        if ends:
            self.stopped = True
            self._held = ""
            _, start, self.found = min(ends)
            return held[:start]
        keep = max(_overlap(held, s) for s in self._stop)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """What was held back as a possible beginning of a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class TextStream:
    """One answer's text: detokenizer and stop strings in a row."""

    def __init__(self, decoder: Decoder, stop: Sequence[str] = ()) -> None:
        self._detokenizer = Detokenizer(decoder)
        self._scanner = StopScanner(stop)

    @property
    def stopped(self) -> bool:
        return self._scanner.stopped

    def push(self, token: int) -> str:
        return self._scanner.push(self._detokenizer.push(token))

    def flush(self) -> str:
        """The rest of the text when the answer ends for any other reason; may itself complete a stop string."""
        text = self._scanner.push(self._detokenizer.flush())
        return text if self.stopped else text + self._scanner.flush()
