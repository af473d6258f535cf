"""The text that needles are hidden in, in tokens: people's own files, or generated sentences."""

from __future__ import annotations

import random
import re
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from longsight.evals import filler
from longsight.evals.errors import EvalError
from longsight.model.tokenizer import Tokenizer

_PIECE = re.compile(r".*?(?:[.!?] +|\n+)|.+$", re.DOTALL)
MAX_PIECE = 400  # characters: a line longer than that is cut


@dataclass(frozen=True)
class Document:
    """pieces: its text cut after sentences and lines; nothing is lost."""

    title: str
    pieces: tuple[str, ...]

    @classmethod
    def of_text(cls, title: str, text: str) -> Document:
        pieces = [piece for piece in _PIECE.findall(text) if piece]
        return cls(title, tuple(p[i : i + MAX_PIECE] for p in pieces for i in range(0, len(p), MAX_PIECE)))


def read_documents(paths: Sequence[Path]) -> list[Document]:
    """One document per UTF-8 file; of a directory, its .txt, .md, .rst and .py files in order. Raises EvalError."""
    files = [
        file
        for path in paths
        for file in (
            sorted(f for f in path.rglob("*") if f.suffix in (".txt", ".md", ".rst", ".py") and f.is_file())
            if path.is_dir()
            else [path]
        )
    ]
    documents = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise EvalError(f"cannot read {file}: {error}") from error
        if text.strip():
            documents.append(Document.of_text(file.name, text))
    if paths and not documents:
        raise EvalError(f"no text in {', '.join(map(str, paths))}")
    return documents


class Haystack:
    """Endless pieces of text as tokens. documents: from these, starting anywhere; without any, generated sentences."""

    def __init__(self, tokenizer: Tokenizer, documents: Sequence[Document] = ()) -> None:
        self.documents = documents
        self._pieces = [piece for document in documents for piece in document.pieces]
        self.encode: Callable[[str], tuple[int, ...]] = lru_cache(1 << 16)(
            lambda text: tuple(tokenizer.encode_plain(text))
        )

    def pieces(self, rng: random.Random, avoid: Collection[str] = ()) -> Iterator[tuple[int, ...]]:
        if not self._pieces:
            while True:
                yield self.encode(filler.sentence(rng, avoid))
        at = rng.randrange(len(self._pieces))
        while True:
            yield self.encode(self._pieces[at])
            at = (at + 1) % len(self._pieces)

    def hide(
        self,
        rng: random.Random,
        tokens: int,
        needles: Sequence[tuple[float, Sequence[int]]],
        start: Sequence[int] = (),
        avoid: Collection[str] = (),
    ) -> tuple[array[int], list[tuple[int, int]]]:
        """`start` and exactly `tokens` tokens after it: text with each needle, (depth 0..1, its tokens), between two
        pieces; and the span that each has in the whole, in the order given. Needles of one depth keep their order.
        avoid: words that no generated sentence has, so that none speaks of what a needle is about.

        Raises EvalError if the needles leave no room.
        """
        room = tokens - sum(len(needle) for _, needle in needles)
        if room < 0:
            raise EvalError(f"{tokens} tokens of context cannot hold needles of {tokens - room}; use a greater length")
        pieces, have = [], 0
        for piece in self.pieces(rng, avoid):
            if have >= room:
                break
            if piece:
                pieces.append(piece)
                have += len(piece)
        excess = have - room  # taken off the beginning, where no sentence is asked about
        for i, piece in enumerate(pieces):
            pieces[i], excess = piece[excess:], max(excess - len(piece), 0)
        context, spans = array("i", start), [(0, 0)] * len(needles)
        waiting = sorted(range(len(needles)), key=lambda i: needles[i][0])
        read = 0
        for piece in (*filter(None, pieces), ()):
            # Before the piece whose middle lies beyond the depth; the last go to the end.
            while waiting and (not piece or needles[waiting[0]][0] * room <= read + len(piece) / 2):
                i = waiting.pop(0)
                spans[i] = (len(context), len(context) + len(needles[i][1]))
                context.extend(needles[i][1])
            context.extend(piece)
            read += len(piece)
        return context, spans
