"""Long-context tasks in plain English, each a small generator. The kinds are those of RULER (arXiv:2404.06654); the
texts are this project's. A model with a chat template is asked a question; any other gets the beginning of a sentence,
which untuned models can continue.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from longsight.evals import filler
from longsight.evals.chat import ChatFrame
from longsight.evals.errors import EvalError
from longsight.evals.haystack import Haystack
from longsight.evals.sample import Question, Sample, Score, begins_with, finds, mentions

KEYS = 8  # needles of the tasks with several
VALUES = 4  # of one key
HOPS = 3  # from the variable asked for to its number
COMMON = 5  # words asked for
FREQUENT = 3
DRAWS = 16  # of words to count, before a length is called too short
SLACK = 3  # tokens beyond the longest answer: a model may spell it in other tokens
CHAT_SLACK = 32  # in a chat it may put it in other words


@dataclass(frozen=True)
class QaItem:
    """A document, a question about it, and the answers that count."""

    document: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class TextWorld:
    """What text tasks are made from.

    bos: the token that every context starts with, if any. chat: what stands around a prompt instead, for a model that
    is asked through its chat template.
    """

    haystack: Haystack
    bos: int | None = None
    qa: Sequence[QaItem] = field(default=())
    chat: ChatFrame | None = None

    @property
    def start(self) -> tuple[int, ...]:
        """The tokens before a context."""
        if self.chat is not None:
            return self.chat.before
        return () if self.bos is None else (self.bos,)

    def question(self, begun: str, asked: str, answers: Sequence[str], score: Score) -> Question:
        """begun: the beginning of a sentence. asked: the same as a question, for a chat. answers: texts as they follow
        `begun`, a space before them if there is one; in a chat the whole sentence is the expected answer."""
        encode = self.haystack.encode
        if self.chat is None:
            tokens = tuple(encode(answer) for answer in answers)
            return Question(encode(begun), tokens, max(map(len, tokens)) + SLACK, score)
        tokens = tuple(encode(f"{begun.strip()}{answer}.") for answer in answers)
        asked_tokens = (*encode(f"\n\n{asked}"), *self.chat.after)
        return Question(asked_tokens, tokens, max(map(len, tokens)) + CHAT_SLACK, score, in_sentence=True)

    def one_of(self, answers: Sequence[str]) -> Score:
        """Right if a continuation begins with an accepted answer, or the answer in a chat names it."""
        return begins_with(answers) if self.chat is None else mentions(answers)

    def sample(
        self,
        rng: random.Random,
        length: int,
        needles: Sequence[tuple[float, str]],
        questions: Sequence[tuple[Question, Sequence[int]]],
        depth: float | None,
        things: Sequence[str] = (),
    ) -> Sample:
        """A prompt and answers of `length` tokens together. Each question comes with the needles it rests on.

        things: what the needles are about; generated sentences around them use none of these words.
        """
        start = self.start
        tail = max(len(q.tokens) + q.max_tokens for q, _ in questions)
        encoded = [(at, self.haystack.encode(text)) for at, text in needles]
        words = {word for thing in things for word in thing.split()}
        context, spans = self.haystack.hide(rng, length - len(start) - tail, encoded, start, words)
        asked = [replace(q, evidence=tuple(spans[i] for i in needs)) for q, needs in questions]
        return Sample(context, tuple(asked), depth)


# (world, rng, tokens in all, depth 0..1) -> a trial. Raises EvalError where the length leaves no room.
TextTask = Callable[[TextWorld, random.Random, int, float], Sample]


def single(world: TextWorld, rng: random.Random, length: int, depth: float) -> Sample:
    """One code, at the depth."""
    return _codes(world, rng, length, depth, keys=1, asked=1)


def multikey(world: TextWorld, rng: random.Random, length: int, depth: float) -> Sample:
    """Codes for several things, one of them asked for, at the depth; the others anywhere."""
    return _codes(world, rng, length, depth, keys=KEYS, asked=1)


def multiquery(world: TextWorld, rng: random.Random, length: int, depth: float) -> Sample:
    """Codes for several things, all asked for, one after the other."""
    return _codes(world, rng, length, depth, keys=KEYS, asked=KEYS)


def _codes(world: TextWorld, rng: random.Random, length: int, depth: float, *, keys: int, asked: int) -> Sample:
    things, codes = filler.subjects(rng, keys), filler.codes(rng, keys)
    depths = [depth] + [rng.random() for _ in range(keys - 1)]
    sentences = [f"The secret code for the {thing} is" for thing in things]
    needles = [(d, f"\n{s} {code}.\n") for d, s, code in zip(depths, sentences, codes, strict=True)]
    questions = [
        (
            world.question(
                f"\n{sentences[i]}",
                f"What is the secret code for the {things[i]}?",
                [f" {codes[i]}"],
                world.one_of([codes[i]]),
            ),
            [i],
        )
        for i in range(asked)
    ]
    return world.sample(rng, length, needles, questions, depth, things)


def multivalue(world: TextWorld, rng: random.Random, length: int, depth: float) -> Sample:
    """Several codes for one thing, all to be named, in any order."""
    thing, codes = filler.subject(rng), filler.codes(rng, VALUES)
    needles = [(rng.random(), f"\nOne of the secret codes for the {thing} is {code}.\n") for code in codes]
    answer = f" {', '.join(codes[:-1])} and {codes[-1]}"
    question = world.question(
        f"\nThe {VALUES} secret codes for the {thing} are",
        f"What are the {VALUES} secret codes for the {thing}?",
        [answer],
        finds(codes),
    )
    return world.sample(rng, length, needles, [(question, range(VALUES))], None, [thing])


def tracking(world: TextWorld, rng: random.Random, length: int, depth: float) -> Sample:
    """Variables set to each other: the number at the end of one chain, with another chain beside it."""
    names = [word.upper() for word in filler.coined_words(rng, 2 * (HOPS + 1))]
    codes = filler.codes(rng, 2)
    needles = []
    for chain, code in zip((names[: HOPS + 1], names[HOPS + 1 :]), codes, strict=True):
        sources = [code, *(f"the value of {name}" for name in chain[:-1])]
        places = sorted(rng.random() for _ in chain)
        needles += [
            (place, f"\nThe value of {name} is {source}.\n")
            for place, name, source in zip(places, chain, sources, strict=True)
        ]
    text = f"\nWritten as a number, the value of {names[HOPS]} is"
    question = world.question(
        text, f"Written as a number, what is the value of {names[HOPS]}?", [f" {codes[0]}"], world.one_of([codes[0]])
    )
    return world.sample(rng, length, needles, [(question, range(HOPS + 1))], None)


def common(world: TextWorld, rng: random.Random, length: int, depth: float) -> Sample:
    """A list of words: a few occur ten times as often as the others and make half of it."""
    return _words(world, rng, length, COMMON, lambda rank, total: total / (2 if rank < COMMON else 20) / COMMON)


def frequent(world: TextWorld, rng: random.Random, length: int, depth: float) -> Sample:
    """Coined words that occur as 1 / rank squared: the first few are asked for."""
    return _words(world, rng, length, FREQUENT, lambda rank, total: 0.6 * total / (rank + 1) ** 2)


def _words(world: TextWorld, rng: random.Random, length: int, asked: int, times: Callable[[int, int], float]) -> Sample:
    """times(rank, words in all): how often the word of this rank occurs, at least once while there is room. Words that
    happen to take so many tokens that the first could not be told from the rest are drawn again."""
    for _ in range(DRAWS):
        drawn = _drawn_words(world, rng, length, asked, times)
        if drawn is not None:
            return drawn
    raise EvalError(f"{length} tokens are too few to count words in; use a greater length")


def _drawn_words(
    world: TextWorld, rng: random.Random, length: int, asked: int, times: Callable[[int, int], float]
) -> Sample | None:
    words = filler.coined_words(rng, max(length // 8, 2 * asked))
    top = words[:asked]
    answer = f" {', '.join(top[:-1])} and {top[-1]}"
    question = world.question(
        f"\nThe {asked} words that occur most often are",
        f"Which {asked} words occur most often?",
        [answer],
        finds(top),
    )
    context = array("i", world.start)
    room = max(length - len(context) - len(question.tokens) - question.max_tokens, 0)
    pieces = [world.haystack.encode(f"{word}\n") for word in words]
    total = room * len(pieces) // sum(map(len, pieces))
    listed: list[int] = []
    counts = [0] * len(pieces)
    for rank, piece in enumerate(pieces):
        counts[rank] = min(max(round(times(rank, total)), 1), room // len(piece))
        room -= counts[rank] * len(piece)
        listed += [rank] * counts[rank]
    if min(counts[:asked]) <= max(counts[asked], 1):
        return None
    rng.shuffle(listed)
    for rank in listed:
        context.extend(pieces[rank])
    return Sample(context, (question,))


def qa(world: TextWorld, rng: random.Random, length: int, depth: float) -> Sample:
    """A question about one real document among others. With question and answer pairs, those; else the end of a
    sentence that is quoted from one of the documents."""
    budget = length // 3
    if world.qa:
        item = rng.choice(world.qa)
        text = f"\nDocument: {item.document}\n"
        if len(world.haystack.encode(text)) > budget:
            raise EvalError(f"{length} tokens cannot hold a document of {len(item.document)} characters three times")
        asked = f"\nQuestion: {item.question}\nAnswer:"
        question = world.question(asked, item.question, [f" {a}" for a in item.answers], world.one_of(item.answers))
        return world.sample(rng, length, [(depth, text)], [(question, [0])], depth)
    quote = _quote(world.haystack, rng, budget)
    question = world.question(
        f"\n{quote.first}",
        f'With which two words does the sentence end that begins "{quote.first}"?',
        [f" {quote.last}"],
        world.one_of([quote.last]),
    )
    return world.sample(rng, length, [(depth, quote.excerpt)], [(question, [0])], depth)


@dataclass(frozen=True)
class _Quote:
    excerpt: str
    first: str
    last: str


def _quote(haystack: Haystack, rng: random.Random, budget: int) -> _Quote:
    """A sentence of at least ten words, its last two apart, and what stands around it in its document."""
    if not haystack.documents:
        raise EvalError("questions about real documents need documents; give files of text, or questions and answers")
    for _ in range(1000):
        document = rng.choice(haystack.documents)
        at = rng.randrange(len(document.pieces))
        words = document.pieces[at].split()
        if not 10 <= len(words) <= 40 or not "".join(words[-2:]).isascii():
            continue
        excerpt = f"\nDocument: {document.title}\n{''.join(document.pieces[max(at - 2, 0) : at + 3])}\n"
        if len(haystack.encode(excerpt)) <= budget and " ".join(words) in document.pieces[at]:
            return _Quote(excerpt, " ".join(words[:-2]), " ".join(words[-2:]))
    raise EvalError(f"found no sentence of ten words whose surroundings fit {budget} tokens; give more text")


TEXT_TASKS: dict[str, TextTask] = {
    task.__name__: task for task in (single, multikey, multiquery, multivalue, tracking, common, frequent, qa)
}
