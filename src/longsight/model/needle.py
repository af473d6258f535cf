"""A needle in a long text: the prompt that the demo and the tests ask the constructed model."""

from __future__ import annotations

import random
from dataclasses import dataclass

from longsight.ops.errors import LongsightError

# The model sees 15 or 16 characters back from the answer, " compass is " among them: no two colours may end alike for
# long ("scarlet" and "violet" would).
COLOURS = ("amber", "azure", "coral", "indigo", "ivory", "jade", "olive", "scarlet")
OBJECTS = ("anchor", "beacon", "compass", "falcon", "harbour", "lantern", "meadow", "orchard")
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


class NeedleError(LongsightError, ValueError):
    """A prompt that cannot be built: the text is empty, or the size or place leaves no room for the sentences."""


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

    offset: the index of the sentence's first character in the prompt, instead of a depth; at least 1, because a line
    break goes before it. Characters outside ASCII are dropped. `distractors` sentences about other things are spread
    evenly through the text. Raises NeedleError.
    """
    if not 0 <= depth <= 1:
        raise NeedleError(f"depth is {depth}; it must lie between 0 (start) and 1 (end)")
    if not 0 <= distractors < len(COLOURS) * len(OBJECTS):
        raise NeedleError(f"distractors is {distractors}; it must be 0 to {len(COLOURS) * len(OBJECTS) - 1}")
    rng = random.Random(seed)
    subjects = rng.sample([f"{colour} {thing}" for colour in COLOURS for thing in OBJECTS], distractors + 1)
    codes = [f"{rng.randrange(10000):04d}-{''.join(rng.choice(LETTERS) for _ in range(3))}." for _ in subjects]
    questions = [f"The secret code for the {subject} is " for subject in subjects]
    needle, *others = (f"\n{question}{code}\n" for question, code in zip(questions, codes, strict=True))
    tail = f"\n{questions[0]}"

    plain = haystack.encode("ascii", errors="ignore").decode()
    room = size - len(tail) - len(needle) - sum(map(len, others))
    if room < 0 or not plain:
        raise NeedleError(
            f"a prompt of {size} characters over a text of {len(plain)} ASCII characters cannot hold the needle, "
            f"{distractors} distractors and the question"
        )
    body = (plain * (room // len(plain) + 1))[:room]
    # The text without the needle, and where it may be cut for it: not inside a distractor.
    parts: list[str] = []
    for i, other in enumerate(others, 1):
        parts += [body[room * (i - 1) // (distractors + 1) : room * i // (distractors + 1)], other]
    parts.append(body[room * distractors // (distractors + 1) :])
    text = "".join(parts)
    at = round(depth * len(text)) if offset is None else offset - 1
    if not 0 <= at <= len(text):
        raise NeedleError(f"offset is {offset}; it must be 1 to {len(text) + 1} in a prompt of {size} characters")
    start = 0
    for part, other in zip(parts[::2], others, strict=False):
        start += len(part)
        if start < at < start + len(other):
            if offset is not None:
                raise NeedleError(f"offset {offset} lies inside a distractor; use another offset or fewer distractors")
            at = start + len(other)
        start += len(other)
    return NeedlePrompt(text[:at] + needle + text[at:] + tail, questions[0], codes[0], (at + 1, at + len(needle) - 1))
