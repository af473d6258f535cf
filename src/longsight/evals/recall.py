"""Recall at the level of tokens, for small models trained on nothing else: keys and values among fillers.

A context is the start token and cells of two tokens, filler-filler or key-value, shifted by a random 0 or 1 token so
that pairs fall on both parities and across blocks. Each question is a key, its answer the value that followed it.
Tokens mean what the trainer's task says; the texts are drawn by code of their own, so that a mistake in one shows.
"""

from __future__ import annotations

import random
from array import array

from longsight.evals.errors import EvalError
from longsight.evals.sample import Question, Sample, equals
from longsight.train.recall import BOS, Vocabulary


def recall(
    vocabulary: Vocabulary, rng: random.Random, length: int, *, needles: int | None = None, questions: int = 16
) -> Sample:
    """`needles` key-value cells (None: one in 32 tokens, at most as many as there are keys) and the rest fillers.

    At most `questions` of the keys are asked for. Raises EvalError where the cells do not fit.
    """
    cells = (length - 4) // 2
    count = needles if needles is not None else min(max(length // 32, 1), vocabulary.keys)
    if not 1 <= count <= min(cells, vocabulary.keys):
        raise EvalError(f"{count} needles do not fit {length} tokens, {max(cells, 0)} cells and {vocabulary.keys} keys")
    context = array("i", [BOS])
    context.extend(rng.choices(vocabulary.filler_ids, k=2 * cells + 1))
    shift = rng.randrange(2)
    asked = []
    places = rng.sample(range(cells), count)
    for place, key in zip(places, rng.sample(vocabulary.key_ids, count), strict=True):
        at = 1 + shift + 2 * place
        value = rng.choice(vocabulary.value_ids)
        context[at], context[at + 1] = key, value
        asked.append(Question((key,), ((value,),), 1, equals([(value,)]), ((at, at + 2),)))
    return Sample(context, tuple(rng.sample(asked, min(questions, count))))
