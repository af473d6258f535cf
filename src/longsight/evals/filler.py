"""Plain English without meaning, and words to build needles from: generated, so that no text is needed.

On purpose no list here is shared with the tasks that models are trained on (train/facts.py): what is tested should not
be what was drilled. The forms of sentences are shared.
"""

from __future__ import annotations

import random
from collections.abc import Collection

ADJECTIVES = (
    *("amber", "azure", "bitter", "brisk", "calm", "coral", "crooked", "dusty", "eager", "faded", "gentle", "hollow"),
    *("humble", "indigo", "ivory", "jade", "keen", "lively", "mellow", "narrow", "olive", "pale", "quiet", "restless"),
    *("rusty", "scarlet", "silent", "slender", "sturdy", "tidy", "velvet", "weary"),
)
NOUNS = (
    *("anchor", "barrel", "beacon", "bridge", "candle", "cellar", "chapel", "compass", "falcon", "ferry", "garden"),
    *("hammer", "harbour", "kettle", "ladder", "lantern", "ledger", "market", "meadow", "mirror", "orchard", "pigeon"),
    *("pillar", "quarry", "saddle", "shutter", "spindle", "tavern", "thicket", "tower", "wagon", "willow"),
)
_VERBS = (
    *("stands behind", "was painted like", "reminds people of", "was sold with", "is older than", "belongs beside"),
    *("looks smaller than", "was carried past", "is heavier than", "lay hidden under", "is kept near", "outlived"),
)
_OPENINGS = ("", "In spring ", "Most days ", "After the rain ", "By custom ", "At dusk ", "As a rule ", "Every year ")
_SYLLABLES = tuple(c + v for c in "bdfgklmnprstvz" for v in "aeiou")


def sentence(rng: random.Random, avoid: Collection[str] = ()) -> str:
    """One sentence, a full stop and a space after it; now and then a line break instead. avoid: words not to use."""
    opening = rng.choice(_OPENINGS)
    things = subject(rng, avoid), rng.choice(_VERBS), subject(rng, avoid)
    text = f"{opening}{'the' if opening else 'The'} {things[0]} {things[1]} the {things[2]}."
    return text + ("\n" if rng.random() < 0.2 else " ")


def subject(rng: random.Random, avoid: Collection[str] = ()) -> str:
    """Two words that name a thing, none of them in `avoid`."""
    return " ".join(rng.choice([word for word in words if word not in avoid]) for words in (ADJECTIVES, NOUNS))


def subjects(rng: random.Random, count: int) -> list[str]:
    """Different ones. ValueError beyond len(ADJECTIVES) * len(NOUNS)."""
    places = rng.sample(range(len(ADJECTIVES) * len(NOUNS)), count)
    return [f"{ADJECTIVES[place // len(NOUNS)]} {NOUNS[place % len(NOUNS)]}" for place in places]


def coined_words(rng: random.Random, count: int) -> list[str]:
    """Different words of three syllables that mean nothing."""
    places = rng.sample(range(len(_SYLLABLES) ** 3), count)
    n = len(_SYLLABLES)
    return ["".join(_SYLLABLES[place // n**i % n] for i in range(3)) for place in places]


def codes(rng: random.Random, count: int) -> list[str]:
    """Different numbers of five digits."""
    return [str(number) for number in rng.sample(range(10_000, 100_000), count)]
