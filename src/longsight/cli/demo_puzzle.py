"""What the demo asks: one sentence hidden in real text, and the question for it, made to a number of tokens."""

from __future__ import annotations

import itertools
import random
import re
import textwrap
from array import array
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from longsight.chat.messages import ChatMessage
from longsight.chat.prompt import ChatFormat
from longsight.chat.template import ChatTemplate
from longsight.cli.demo_errors import NotEnoughTextError
from longsight.model.needle import COLOURS, LETTERS, OBJECTS, hide_needle
from longsight.model.tokenizer import Tokenizer

LINE = 400  # characters: longer lines are broken, so that the sentence can stand at any depth
ENDING, TRIES = 8, 100  # at least so many tokens for the end of the text; beginnings of text that may become it


@dataclass(frozen=True)
class Puzzle:
    """text: what the client sends, as a user's message of a chat or as a text to go on with. tokens: of the prompt as
    the model reads it. needle: (first, one past last) of them, the hidden sentence. answer: what must come back."""

    text: str
    tokens: int
    needle: tuple[int, int]
    question: str
    answer: str
    chat: bool

    def is_right(self, answer: str) -> bool:
        """A text must go on with the answer; what is said in a chat must hold it, letter for letter and by itself."""
        if not self.chat:
            return answer.startswith(self.answer)
        return holds(answer, self.answer)


def holds(text: str, value: str) -> bool:
    """Whether `value` stands in the text, letter for letter and by itself."""
    return re.search(rf"(?<![\w-]){re.escape(value)}(?![\w-])", text) is not None


def text_puzzle(text: str, tokens: int, depth: float, seed: int) -> Puzzle:
    """For the constructed model, whose tokens are characters: the text ends with the sentence's own beginning."""
    prompt = hide_needle(text, tokens, depth, seed=seed)
    return Puzzle(
        prompt.text, len(prompt.text), prompt.needle, f"{prompt.question.strip()} ...", prompt.answer, chat=False
    )


def chat_puzzle(
    text: str, tokens: int, depth: float, seed: int, tokenizer: Tokenizer, template: ChatTemplate | None
) -> Puzzle:
    """For a model that converses: a message of the text, cut or repeated, and a question.

    tokens: of the prompt; a few less where the text cannot be cut so. template: the checkpoint's. Raises
    NotEnoughTextError if the sentence and the question leave no room for text.
    """
    if not 0 <= depth <= 1:
        raise NotEnoughTextError(f"depth is {depth}; it must lie between 0 (start) and 1 (end)")
    rng = random.Random(seed)
    subject = f"{rng.choice(COLOURS)} {rng.choice(OBJECTS)}"
    answer = f"{rng.randrange(1000, 10000)}-{''.join(rng.choices(LETTERS, k=3))}"
    sentence, question = (
        f"The secret code for the {subject} is {answer}.",
        f"What is the secret code for the {subject}?",
    )
    form = ChatFormat(tokenizer, template)

    def prompt(content: str) -> Sequence[int]:
        return form.prompt([ChatMessage("user", content)], thinking="disabled").tokens

    needle = f"{sentence}\n\n"
    room = tokens - len(prompt(needle + question))
    pieces, costs = _fill(_paragraphs(text), room, tokenizer)
    at = bisect(list(itertools.accumulate(costs)), depth * room)
    content = "".join([*pieces[:at], needle, *pieces[at:], question])
    ids = prompt(content)
    # A full stop may share its token with the line break after it.
    return Puzzle(content, len(ids), _find(ids, tokenizer.encode_plain(sentence[:-1])), question, answer, chat=True)


def _paragraphs(text: str) -> list[str]:
    """Lines with the line breaks after them, none of white space alone.

    Byte-level tokenizers with GPT-2's kind of pattern end a token where one of these ends, so what they cost adds up.
    """
    lines = [line.rstrip() for line in text.splitlines()]
    wrapped = (textwrap.wrap(line, LINE) if len(line) > LINE else [line] for line in lines)
    flat = [*itertools.chain.from_iterable(wrapped), ""]
    return [f"{line}\n" if after else f"{line}\n\n" for line, after in itertools.pairwise(flat) if line]


def _fill(paragraphs: Sequence[str], room: int, tokenizer: Tokenizer) -> tuple[list[str], list[int]]:
    """Paragraphs, again from the first when they are used up, of `room` tokens in all, and the tokens of each.

    A few tokens less where none of them can be cut to what is left at the end. Raises NotEnoughTextError.
    """
    if room < 1 or not paragraphs:
        raise NotEnoughTextError(
            f"{room} tokens beside the sentence and the question cannot hold any text; take a longer prompt or a text "
            "with words in it"
        )
    costs = [len(ids) for ids in tokenizer.encode_plain_batch(paragraphs)]
    count, taken, left = len(paragraphs), 0, room
    while left >= costs[taken % count] + ENDING:
        left -= costs[taken % count]
        taken += 1
    # The last is the beginning of some text, with an empty line after it; not every cut gives the right number.
    last, cost = "", 0
    for start in range(taken, taken + TRIES):
        ids = tokenizer.encode_plain("".join(paragraphs[i % count] for i in range(start, start + left)).lstrip())
        # A line break is a token, or a part of a full stop's.
        for kept in (left, left - 1):
            cut = f"{tokenizer.decode(ids[:kept]).rstrip()}\n\n"
            if not cut.isspace() and cost < (tokens := len(tokenizer.encode_plain(cut))) <= left:
                last, cost = cut, tokens
        if cost == left:
            break
    whole = [i % count for i in range(taken)]
    return [*(paragraphs[i] for i in whole), last], [*(costs[i] for i in whole), cost]


def _find(tokens: Sequence[int], part: Sequence[int]) -> tuple[int, int]:
    """Where `part` stands in `tokens`."""
    whole, wanted = array("i", tokens), array("i", part)
    data, at = whole.tobytes(), -1
    while at % whole.itemsize:
        at = data.index(wanted.tobytes(), at + 1)
    return at // whole.itemsize, at // whole.itemsize + len(wanted)
