"""A needle in a long text: the prompt that the demo, the tests and the benches ask the constructed model."""

from __future__ import annotations

import random
from dataclasses import dataclass

COLOURS = ("amber", "azure", "coral", "ivory", "jade", "olive", "scarlet", "violet")
OBJECTS = ("anchor", "beacon", "compass", "falcon", "harbour", "lantern", "meadow", "orchard")
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


@dataclass(frozen=True)
class NeedlePrompt:
    """A prompt of ASCII text, one byte-level token per character.

    text ends with `question`; the right continuation is `answer`. needle: (first, one past last) character of the
    hidden sentence.
    """

    text: str
    question: str
    answer: str
    needle: tuple[int, int]


def hide_needle(
    haystack: str, size: int, depth: float, *, seed: int = 0, distractors: int = 0, offset: int | None = None
) -> NeedlePrompt:
    """Cut or repeat `haystack` to a prompt of exactly `size` characters with one sentence hidden at `depth` (0..1).

    offset: the place in characters instead of the depth. Characters outside ASCII are dropped. `distractors` sentences
    about other things are spread evenly through the text.
    Raises ValueError if the size cannot hold the sentences and the question, or the haystack is empty.
    """
    if not 0 <= depth <= 1:
        raise ValueError(f"depth is {depth}; it must lie between 0 (start) and 1 (end)")
    rng = random.Random(seed)
    subjects = rng.sample([f"{colour} {thing}" for colour in COLOURS for thing in OBJECTS], distractors + 1)
    codes = [f"{rng.randrange(10000):04d}-{''.join(rng.choice(LETTERS) for _ in range(3))}." for _ in subjects]
    questions = [f"The secret code for the {subject} is " for subject in subjects]
    sentences = [f"\n{question}{code}\n" for question, code in zip(questions, codes, strict=True)]
    tail = f"\n{questions[0]}"

    room = size - len(tail) - sum(map(len, sentences))
    plain = haystack.encode("ascii", errors="ignore").decode()
    if room < 0 or not plain:
        raise ValueError(
            f"a prompt of {size} characters over a text of {len(plain)} cannot hold the needle and question"
        )
    body = (plain * (room // len(plain) + 1))[:room]
    places = [(min(int(depth * room) if offset is None else offset, room), 0)]
    places += [(room * i // (distractors + 1), i) for i in range(1, distractors + 1)]

    parts: list[str] = []
    read, length, span = 0, 0, (0, 0)
    for at, which in sorted(places):
        parts += [body[read:at], sentences[which]]
        length += at - read
        if which == 0:
            span = (length + 1, length + len(sentences[0]) - 1)  # without its line breaks
        length += len(sentences[which])
        read = at
    parts += [body[read:], tail]
    return NeedlePrompt("".join(parts), questions[0], codes[0], span)
