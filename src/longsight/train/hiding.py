"""Rows that are text with sentences hidden in it, and then more sentences to go on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longsight.train.packing import Sequences
from longsight.train.script import Material, Script, pick

BETWEEN = (" ", "\n", "\n\n")
PARAGRAPH = "\n\n"


def hide(
    script: Script,
    material: Material,
    rng: np.random.Generator,
    sentences: Sequence[str],
    room: int,
    *,
    apart: float = 0.0,
) -> None:
    """Add real text with the sentences in it at random places, in the order given: `room` tokens in all, or what the
    sentences take. apart: share of them that are paragraphs of their own, whose full stop and the line breaks after it
    may be one token."""

    def written(sentence: str) -> Sequence[int]:
        if apart and rng.random() < apart:
            return material.encode(f"{PARAGRAPH}{sentence}{PARAGRAPH}")
        return material.encode(f"{pick(rng, BETWEEN)}{sentence}")

    needles = [written(sentence) for sentence in sentences]
    filler = material.filler(rng, max(room - sum(map(len, needles)), 0))
    before = 0
    for place, needle in zip(np.sort(rng.integers(0, len(filler) + 1, len(needles))), needles, strict=True):
        script.add(filler[before:place]).add(needle)
        before = int(place)
    script.add(filler[before:])


@dataclass(frozen=True)
class Begun:
    """A sentence to go on with: `begin` is read, `end` is learned, a blank before it if there is one."""

    begin: str
    end: str


@dataclass(frozen=True)
class PlainText:
    """Writes rows that are no chat: text, then sentences that it tells the ends of. start: begins a document."""

    material: Material
    start: Sequence[int]

    def fits(self, hidden: Sequence[str], asked: Sequence[Begun], length: int) -> bool:
        encode = self.material.encode
        cost = sum(len(encode(f"\n\n{sentence}")) for sentence in hidden)
        return len(self.start) + cost + len(self._endings(asked)) <= length

    def row(self, rng: np.random.Generator, hidden: Sequence[str], asked: Sequence[Begun], length: int) -> Sequences:
        """`length` tokens; what does not fit is cut off the end."""
        endings = self._endings(asked)
        script = Script().add(self.start)
        hide(script, self.material, rng, hidden, length - len(script) - len(endings))
        return joined(script, endings, length)

    def _endings(self, asked: Sequence[Begun]) -> Script:
        script, encode = Script(), self.material.encode
        for sentence in asked:
            script.add(encode(f"\n{sentence.begin}")).add(encode(sentence.end), learn=True)
        return script


def joined(script: Script, more: Script, length: int) -> Sequences:
    """Both as one row, at most `length` tokens."""
    script.ids.extend(more.ids)
    script.learned.extend(more.learned)
    del script.ids[length:], script.learned[length:]
    return script.row()


def listed(items: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join(filter(None, (", ".join(items[:-1]), items[-1])))
