"""Documents cut and packed into rows of a given length, before any training step.

Legend: P pieces, R rows, L tokens of a row. A piece is a whole document, or L tokens or the rest of one longer than L.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from longsight.train.batch import IGNORED
from longsight.train.tokens import TokenFile

Array = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Sequences:
    """One packed row: documents one after the other, at most L tokens together.

    tokens, targets: int64 [n], a target being IGNORED where nothing is to be learned. lengths: tokens of each document.
    """

    tokens: Array
    targets: Array
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Packing:
    """Which pieces make each row: row r has pieces rows[r] .. rows[r + 1] - 1.

    documents, starts, sizes: int64 [P], tokens starts .. starts + sizes - 1 of a document. rows: int64 [R + 1].
    """

    documents: Array
    starts: Array
    sizes: Array
    rows: Array

    def __len__(self) -> int:
        return len(self.rows) - 1

    def read(self, tokens: TokenFile, row: int) -> Sequences:
        """A row. The target of a piece's last token is the document's next token where the document goes on."""
        ids, targets, lengths = [], [], []
        for piece in range(int(self.rows[row]), int(self.rows[row + 1])):
            document, start, size = (int(x[piece]) for x in (self.documents, self.starts, self.sizes))
            length = int(tokens.offsets[document + 1] - tokens.offsets[document])
            read = tokens.read(document, start, min(start + size + 1, length))
            ids.append(read[:size])
            targets.append(np.append(read[1:], IGNORED) if start + size == length else read[1:])
            lengths.append(size)
        return Sequences(np.concatenate(ids), np.concatenate(targets), tuple(lengths))


def pack(documents: Array, lengths: Array, length: int) -> Packing:
    """Pack `documents` (their numbers), of `lengths` tokens, into rows of at most `length` tokens.

    Documents longer than a row are cut into full rows and a rest. Whole documents and rests go, the largest first, each
    into the row with the least room that still holds it (best-fit decreasing), so rows are nearly full and nothing else
    is cut. Every token of every document is in exactly one row. The same input gives the same rows.
    """
    whole, rest = lengths // length, lengths % length
    # Full rows first: document d's pieces 0, L, 2L, ...
    full = np.repeat(np.arange(len(documents)), whole)
    ordinal = np.arange(len(full)) - np.repeat(np.cumsum(whole) - whole, whole)
    remaining = np.flatnonzero(rest)
    remaining = remaining[np.argsort(-rest[remaining], kind="stable")]
    row_of = _best_fit(rest[remaining].tolist(), length)

    index = np.concatenate([full, remaining])
    starts = np.concatenate([ordinal * length, whole[remaining] * length])
    sizes = np.concatenate([np.full(len(full), length), rest[remaining]])
    row = np.concatenate([np.arange(len(full)), len(full) + row_of])
    order = np.argsort(row, kind="stable")
    count = int(row.max()) + 1 if len(row) else 0
    rows = np.searchsorted(row[order], np.arange(count + 1))
    return Packing(documents[index][order], starts[order], sizes[order], rows)


def _best_fit(sizes: list[int], length: int) -> Array:
    """The row of each item: the one with the least sufficient room, else a new one."""
    rows_with: dict[int, list[int]] = {}  # room -> rows
    rooms = 0  # bit c is set where some row has room for c
    out = np.empty(len(sizes), np.int64)
    opened = 0
    for item, size in enumerate(sizes):
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = rows_with[room].pop()
            if not rows_with[room]:
                rooms ^= 1 << room
        else:
            room, row, opened = length, opened, opened + 1
        out[item] = row
        left = room - size
        if left:
            rows_with.setdefault(left, []).append(row)
            rooms |= 1 << left
    return out
