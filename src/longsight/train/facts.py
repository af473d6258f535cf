"""Facts of made-up people and things: how a text states each, how people ask for it, how it is answered."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from longsight.train.script import Material, chance, pick

# {k}: who or what, {v}: the answer, {a}: a property.
# Close to an answer: the subject right before the value, so that what follows the same words may be copied.
STATED_DIRECTLY = (
    "The {a} for {k} is {v}.",
    "The {a} of {k} is {v}.",
    "Remember: the {a} for {k} is {v}.",
    "Note that the {a} of {k} is {v}.",
    "By the way, the {a} for {k} is {v}.",
    "One of the {a}s for {k} is: {v}.",
    "The {a} of {k}: {v}.",
)
# The subject further away, or after the value: a model must gather who a sentence is about.
STATED_ROUNDABOUT = (
    "{k}'s {a} is {v}.",
    "For {k}, the {a} is {v}.",
    "It is well known that {k}'s {a} is {v}.",
    "Keep in mind that {v} is the {a} of {k}.",
    "{v} is the {a} for {k}.",
)
# Each with the answer's beginning, in the question's own words.
PROPERTY_ASKED = (
    ("What is the {a} for {k}?", "The {a} for {k} is"),
    ("What is the {a} of {k}?", "The {a} of {k} is"),
    ("What is {k}'s {a}?", "{k}'s {a} is"),
    ("Tell me the {a} for {k}.", "The {a} for {k} is"),
    ("I forgot the {a} of {k}. What is it?", "The {a} of {k} is"),
    ("What is the {a} for {k} mentioned in the text?", "The {a} for {k} is"),
    ("What is the {a} for {k} that the text above mentions? Answer in one sentence.", "The {a} for {k} is"),
    ("Find the {a} of {k} in the text above.", "The {a} of {k} is"),
    ("According to the text, what is the {a} for {k}?", "The {a} for {k} is"),
    ("Which {a} belongs to {k}?", "The {a} of {k} is"),
    ("Somewhere above, the {a} for {k} is given. What is it?", "The {a} for {k} is"),
    ("Give me {k}'s {a}, please.", "{k}'s {a} is"),
    ("Do you know {k}'s {a}?", "{k}'s {a} is"),
)
ASKED_DIRECTLY = tuple(asked for asked in PROPERTY_ASKED if asked[1].endswith("{k} is"))
PROPERTIES = (
    *("secret code", "magic number", "special magic number", "password", "access code", "phone number", "passkey"),
    *("locker combination", "serial number", "badge number", "flight number", "account number", "order number"),
    *("room number", "birth year", "PIN", "key", "identifier", "favourite number", "licence plate", "passphrase"),
    *("code word", "token", "ticket number", "lucky number", "favourite word", "file name", "colour", "nickname"),
    *("address", "price", "weight", "best friend", "home town", "project name", "login", "extension", "name"),
)
# Statement, question, beginning of the answer, kind of value.
RELATIONS = (
    ("{k} lives in {v}.", "Where does {k} live?", "{k} lives in", "name"),
    ("{k} works as a {v}.", "What does {k} do for a living?", "{k} works as a", "word"),
    ("The meeting with {k} starts at {v}.", "When does the meeting with {k} start?", "It starts at", "time"),
    ("{k} paid {v} dollars for it.", "How much did {k} pay?", "{k} paid", "number"),
    ("{k} was born in {v}.", "When was {k} born?", "{k} was born in", "year"),
    ("{k} is married to {v}.", "Who is {k} married to?", "{k} is married to", "name"),
    ("{k} is hidden under the {v}.", "Where is {k} hidden?", "{k} is hidden under the", "word"),
    ("The best thing about {k} is the {v}.", "What is the best thing about {k}?", "The best thing is the", "words"),
    ("The train to {k} leaves from platform {v}.", "Where does the train to {k} leave?", "From platform", "number"),
    ("{k} scored {v} points.", "How many points did {k} score?", "{k} scored", "number"),
)


@dataclass(frozen=True)
class Fact:
    """subject and property tell which fact it is; statement is a sentence, value its answer."""

    subject: str
    property: str
    value: str
    statement: str
    question: str
    answer: str


class Few(NamedTuple):
    """A few words and names: subjects made of them are alike, as the red tower, the red door and the old tower are."""

    words: Sequence[str]
    names: Sequence[str]

    @classmethod
    def of(cls, material: Material, rng: np.random.Generator, count: int) -> Few:
        """Enough for `count` subjects."""
        n = int(rng.integers(2, 6)) + math.isqrt(2 * count)
        return cls([material.word(rng) for _ in range(n)], [material.name(rng) for _ in range(n)])

    def word(self, rng: np.random.Generator) -> str:
        return str(pick(rng, self.words))

    def name(self, rng: np.random.Generator) -> str:
        return str(pick(rng, self.names))


def facts(
    material: Material, rng: np.random.Generator, count: int, roundabout: float = 0.4, *, alike: bool = False
) -> list[Fact]:
    """Different facts, some about one subject or of one property, so that the half of a match is not enough.

    roundabout: share of properties that may be stated in other words than those they are told in. alike: whether the
    subjects are made of few words, and their properties are more often the same, so that only a whole match is."""
    made: list[Fact] = []
    shared = pick(rng, PROPERTIES) if rng.random() < (0.7 if alike else 0.4) else None
    words = Few.of(material, rng, count) if alike else material
    while len(made) < count:
        subject_ = pick(rng, made).subject if made and rng.random() < 0.15 else subject(words, rng)
        fact = (
            _relation(material, rng, subject_)
            if rng.random() < 0.2
            else _property(material, rng, subject_, shared, roundabout)
        )
        if all((fact.subject, fact.property) != (other.subject, other.property) for other in made):
            made.append(fact)
    return made


def _property(
    material: Material, rng: np.random.Generator, subject: str, shared: str | None, roundabout: float
) -> Fact:
    name = shared or chance(
        rng,
        (0.8, lambda: str(pick(rng, PROPERTIES))),
        (0.2, lambda: f"{material.word(rng)} {pick(rng, ('number', 'code', 'name', 'word'))}"),
    )
    answer = value(material, rng)
    far = rng.random() < roundabout
    stated = pick(rng, STATED_ROUNDABOUT if far else STATED_DIRECTLY)
    question, begins = pick(rng, PROPERTY_ASKED if far else ASKED_DIRECTLY)
    words = {"k": subject, "a": name, "v": answer}
    return Fact(
        subject,
        name,
        answer,
        _filled(stated, words),
        _filled(question, words),
        _filled(f"{begins} {{v}}.", words),
    )


def _relation(material: Material, rng: np.random.Generator, subject: str) -> Fact:
    stated, asked, begins, kind = pick(rng, RELATIONS)
    answer = VALUES[kind](material, rng)
    words = {"k": subject, "v": answer}
    reply = stated if stated.startswith(begins) else f"{begins} {{v}}."
    return Fact(subject, stated, answer, _filled(stated, words), _filled(asked, words), _filled(reply, words))


def subject(material: Material | Few, rng: np.random.Generator) -> str:
    """Who or what a fact is about: names, one to three words, coined words."""

    def word() -> str:
        return material.word(rng)

    def name() -> str:
        return material.name(rng)

    return chance(
        rng,
        (0.2, lambda: f"the {word()} {word()}"),
        (0.2, lambda: f"{word()}{pick(rng, '- ')}{word()}"),
        (0.15, name),
        (0.15, lambda: f"{name()} {name()}"),
        (0.1, word),
        (0.1, lambda: coined(rng).capitalize()),
        (0.05, lambda: f"{coined(rng)} {word()}"),
        (0.05, lambda: f"the {word()} {word()} {word()}"),
    )


def coined(rng: np.random.Generator) -> str:
    """A word that no text has: consonants and vowels in turn."""
    return "".join(pick(rng, "bcdfghjklmnprstvwz") + pick(rng, "aeiou") for _ in range(int(rng.integers(2, 5))))


def _digits(rng: np.random.Generator, low: int, high: int) -> str:
    return str(rng.integers(10 ** int(rng.integers(low, high, endpoint=True))))


def _letters(rng: np.random.Generator, alphabet: str, low: int, high: int) -> str:
    return "".join(pick(rng, alphabet) for _ in range(int(rng.integers(low, high, endpoint=True))))


CODE = string.ascii_uppercase + string.digits
VALUES: dict[str, Callable[[Material, np.random.Generator], str]] = {
    "number": lambda m, rng: _digits(rng, 1, 6),
    "year": lambda m, rng: str(rng.integers(1000, 2100)),
    "time": lambda m, rng: f"{rng.integers(24):02d}:{rng.integers(60):02d}",
    "word": lambda m, rng: m.word(rng),
    "words": lambda m, rng: f"{m.word(rng)} {m.word(rng)}",
    "name": lambda m, rng: m.name(rng),
}


def value(material: Material, rng: np.random.Generator) -> str:
    """What a property is: numbers, codes such as 4417-KQX, words and names."""
    return chance(
        rng,
        (0.36, lambda: _digits(rng, 2, 9)),
        (0.04, lambda: f"0{_digits(rng, 2, 6)}"),
        (0.15, lambda: f"{rng.integers(10000):04d}-{_letters(rng, string.ascii_uppercase, 2, 4)}"),
        (0.15, lambda: f"{_letters(rng, CODE, 2, 5)}-{_letters(rng, CODE, 2, 5)}"),
        (0.15, lambda: material.word(rng)),
        (0.05, lambda: f"{material.word(rng)}-{material.word(rng)}"),
        (0.05, lambda: material.name(rng)),
        (0.05, lambda: coined(rng)),
    )


def _filled(template: str, words: Mapping[str, str]) -> str:
    """A sentence with a capital letter, but for a value, which is told as it is."""
    text = template.format(**words)
    return text if template.startswith("{v}") else text[0].upper() + text[1:]
