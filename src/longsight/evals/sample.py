"""One trial: a context, the questions asked about it, and how an answer is scored."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# Sees the generated token ids and their text; 0 is wrong, 1 right, and between them the share of several items found.
Score = Callable[[Sequence[int], str], float]


@dataclass(frozen=True)
class Question:
    """What follows the context, and what should follow it.

    tokens: of the question. answers: token ids of each accepted answer. max_tokens: to generate. score: see Score.
    evidence: (first, one past last) tokens of the prompt that an answer rests on, for the share of trials in which
    their blocks were read. in_sentence: the answer may stand anywhere in what is generated, as in a chat.
    """

    tokens: Sequence[int]
    answers: tuple[tuple[int, ...], ...]
    max_tokens: int
    score: Score
    evidence: tuple[tuple[int, int], ...] = ()
    in_sentence: bool = False


@dataclass(frozen=True)
class Sample:
    """context: the tokens that all questions share, so that they are read once. depth: where the evidence of the first
    question lies, 0 (start) to 1 (end), if it was placed."""

    context: array[int]
    questions: tuple[Question, ...] = field(default=())
    depth: float | None = None

    @property
    def length(self) -> int:
        """Tokens of the context, the longest question and its longest answer."""
        longest = max((len(q.tokens) + max(map(len, q.answers), default=0) for q in self.questions), default=0)
        return len(self.context) + longest


def begins_with(answers: Sequence[str]) -> Score:
    """The text begins with an accepted answer, letter for letter, and does not go on within its last word."""

    def score(_: Sequence[int], text: str) -> float:
        text = text.lstrip()
        return float(any(text.startswith(a) and not text[len(a) : len(a) + 1].isalnum() for a in answers))

    return score


def mentions(answers: Sequence[str]) -> Score:
    """An accepted answer occurs in the text, letter for letter and not within a word."""
    wanted = re.compile("|".join(rf"(?<!\w){re.escape(answer)}(?!\w)" for answer in answers))

    def score(_: Sequence[int], text: str) -> float:
        return float(wanted.search(text) is not None)

    return score


def finds(items: Sequence[str]) -> Score:
    """The share of `items` that occur in the text as words of their own, in whatever order."""

    def score(_: Sequence[int], text: str) -> float:
        words = set("".join(c if c.isalnum() else " " for c in text).split())
        return sum(item in words for item in items) / len(items)

    return score


def equals(answers: Sequence[Sequence[int]]) -> Score:
    """The tokens are those of an accepted answer."""
    accepted = {tuple(answer) for answer in answers}

    def score(tokens: Sequence[int], _: str) -> float:
        return float(tuple(tokens) in accepted)

    return score
