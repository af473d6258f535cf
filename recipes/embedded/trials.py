"""Needle questions in plain English for a trained model: `python -m recipes.embedded.trials MODEL`.

Sentences such as "The secret code for the amber lantern is 4417-KQX." are hidden between the sentences of long real
texts, one at each of many depths, and a user asks for each in a chat of its own, through the model's chat template. A
trial is right if the answer holds the value, letter for letter. The other sentences of a text are distractors, and
several questions share a text, because a text of a million tokens takes minutes to read.

The same seed gives the same trials. Results go to a JSON file: every question with its length, depth and answer, the
share that is right with its 95 % Wilson interval, and the seconds; and a picture beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from longsight import LLM, SamplingParams
from longsight.cli.demo_puzzle import holds
from longsight.cli.demo_text import gather_text
from longsight.cli.progress import ProgressBar
from longsight.evals.intervals import wilson
from longsight.model.needle import LETTERS
from longsight.model.tokenizer import Tokenizer
from longsight.ops.errors import LongsightError

# tokens of a text, texts, questions to each: 200 trials
PLAN = ((4096, 8, 5), (16384, 4, 10), (65536, 4, 10), (262144, 2, 20), (1048576, 2, 20))
ANSWER_TOKENS = 96
# Statement and question. {k}: whom or what it is about, {v}: the answer.
ASKED = (
    ("The secret code for {k} is {v}.", "What is the secret code for {k}?"),
    ("The phone number of {k} is {v}.", "What is the phone number of {k}?"),
    ("The password for {k} is {v}.", "What is the password for {k}?"),
    ("The favourite number of {k} is {v}.", "I forgot the favourite number of {k}. What is it?"),
    ("Remember: the locker combination for {k} is {v}.", "Tell me the locker combination for {k}."),
    ("By the way, the access code for {k} is {v}.", "What is the access code for {k} mentioned in the text?"),
    ("The serial number of {k} is {v}.", "According to the text, what is the serial number of {k}?"),
    ("One of the special magic numbers for {k} is: {v}.", "What is the special magic number for {k}?"),
)
COLOURS = ("amber", "azure", "coral", "crimson", "golden", "green", "ivory", "purple", "silver", "violet")
THINGS = ("anchor", "bridge", "castle", "clock", "falcon", "garden", "harbour", "lantern", "mirror", "tower")
FIRST = ("Alice", "Boris", "Carmen", "David", "Elena", "Farid", "Grace", "Hiro", "Ingrid", "Jonas")
LAST = ("Abbott", "Baker", "Castillo", "Dawson", "Eriksen", "Fischer", "Garcia", "Hughes", "Ivanov", "Keller")
CITIES = ("Athens", "Bergen", "Cairo", "Dublin", "Geneva", "Havana", "Lisbon", "Nairobi", "Oslo", "Prague", "Toronto")


@dataclass(frozen=True)
class Needle:
    statement: str
    question: str
    value: str


@dataclass(frozen=True)
class Trial:
    """One question and what came of it. depth: of its needle, 0 the beginning of the text."""

    length: int
    text: int
    depth: float
    statement: str
    question: str
    value: str
    answer: str
    right: bool
    seconds: float


def needles(rng: random.Random, count: int, alike: bool) -> list[Needle]:
    """About different subjects, so that each question has one answer. alike: subjects may share a word, as the amber
    clock and the amber tower do; else none does, and `count` is at most 30."""
    if alike:
        things = rng.sample([f"the {colour} {thing}" for colour in COLOURS for thing in THINGS], count)
        people = rng.sample([f"{first} {last}" for first in FIRST for last in LAST], count)
    else:
        things = [f"the {colour} {thing}" for colour, thing in zip(COLOURS, rng.sample(THINGS, 10), strict=True)]
        people = [f"{first} {last}" for first, last in zip(rng.sample(FIRST, 10), LAST, strict=True)]
    made = []
    for subject in rng.sample([*things, *people, *CITIES], count):
        statement, question = rng.choice(ASKED)
        words = {"k": subject, "v": value(rng)}
        made.append(Needle(statement.format(**words), question.format(**words), words["v"]))
    return made


def value(rng: random.Random) -> str:
    letters = "".join(rng.choice(LETTERS) for _ in range(3))
    return rng.choice((str(rng.randrange(10**3, 10**7)), f"{rng.randrange(1000, 10000)}-{letters}"))


class Haystack:
    """Sentences of a long text, and how many tokens each takes."""

    def __init__(self, text: str, tokenizer: Tokenizer) -> None:
        self.pieces = [piece for piece in re.split(r"(?<=[.!?:;])\s+|\n{2,}", text) if piece.strip()]
        self.tokens = [len(ids) for ids in tokenizer.encode_plain_batch([f" {piece}" for piece in self.pieces])]

    def hide(self, rng: random.Random, hidden: Sequence[Needle], length: int, tokenizer: Tokenizer) -> str:
        """About `length` tokens of consecutive sentences, from a random one on, with the needles at depths spread
        evenly, each at random within its stretch. The text begins again where it ends."""
        room = length - sum(len(tokenizer.encode_plain(f" {needle.statement}")) for needle in hidden)
        at, chosen = rng.randrange(len(self.pieces)), []
        while room >= (size := self.tokens[at % len(self.pieces)]):
            chosen.append(self.pieces[at % len(self.pieces)])
            room, at = room - size, at + 1
        places = [int((i + rng.random()) / len(hidden) * len(chosen)) for i in range(len(hidden))]
        for place, needle in sorted(zip(places, hidden, strict=True), key=lambda pair: -pair[0]):
            chosen.insert(place, needle.statement)
        return " ".join(chosen)


def trials(
    llm: LLM, haystack: Haystack, plan: Sequence[tuple[int, int, int]], seed: int, alike: bool, bar: ProgressBar
) -> Iterator[Trial]:
    total, done = sum(length * texts for length, texts, _ in plan), 0
    for length, texts, questions in plan:
        for text in range(texts):
            rng = random.Random(f"{seed} {length} {text}")
            hidden = needles(rng, questions, alike)
            # The question, the answer and the chat's markers take their share of the length.
            long = haystack.hide(rng, hidden, length - 2 * ANSWER_TOKENS, llm.tokenizer)
            for asked, needle in enumerate(hidden, 1):
                began = time.monotonic()
                prompt = [{"role": "user", "content": f"{long}\n\n{needle.question}"}]
                settings = SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0.0)
                said = llm.chat(prompt, settings, use_tqdm=False)[0].outputs[0].text
                right = holds(said, needle.value)
                depth = long.index(needle.statement) / len(long)
                seconds = time.monotonic() - began
                yield Trial(length, text, depth, needle.statement, needle.question, needle.value, said, right, seconds)
                bar.update(done + length * asked // questions, total, f"{length:,} tokens")
            done += length


def summary(found: Sequence[Trial]) -> dict[str, object]:
    right = sum(trial.right for trial in found)
    low, high = wilson(right, len(found))
    return {"right": right, "trials": len(found), "share": right / len(found), "low": low, "high": high}


def draw(found: Sequence[Trial], path: Path) -> None:
    """Every trial as a dot, by the length of its text and the depth of its needle."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lengths = sorted({trial.length for trial in found})
    rng = random.Random(0)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for right, colour, label in ((True, "#2a7f62", "right"), (False, "#c0392b", "wrong")):
        chosen = [trial for trial in found if trial.right is right]
        spread = [lengths.index(t.length) + rng.uniform(-0.3, 0.3) for t in chosen]
        axes.scatter(spread, [t.depth for t in chosen], s=22, c=colour, label=f"{label}: {len(chosen)}", alpha=0.8)
    axes.set_xticks(range(len(lengths)), [f"{n // 1024}K" if n < 1 << 20 else f"{n >> 20}M" for n in lengths])
    axes.set(xlabel="tokens of text", ylabel="depth of the needle (0: the beginning)", ylim=(1.03, -0.03))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m recipes.embedded.trials", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", type=Path, nargs="?", help="a checkpoint directory; default: the embedded model")
    parser.add_argument("--text", type=Path, help="what needles are hidden in; default: what `longsight demo` reads")
    parser.add_argument("--alike", action="store_true", help="harder: subjects of a text may share a word")
    lengths = [part[0] for part in PLAN]
    parser.add_argument("--lengths", type=int, nargs="+", choices=lengths, default=lengths, help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("trials.json"))
    args = parser.parse_args(arguments)
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    plan = [part for part in PLAN if part[0] in args.lengths]
    try:
        text, source = gather_text(PLAN[-1][0] * 5, args.text)  # characters
        llm = LLM(args.model, max_model_len=plan[-1][0] + ANSWER_TOKENS)
        found: list[Trial] = []
        with ProgressBar("reading") as bar:
            haystack = Haystack(text, llm.tokenizer)
            for trial in trials(llm, haystack, plan, args.seed, args.alike, bar):
                found.append(trial)
                if not trial.right:
                    print(f"{trial.length:,}: {trial.question} {trial.value}; said {trial.answer!r}", file=sys.stderr)
    except LongsightError as error:
        print(f"trials: error: {error}", file=sys.stderr)
        return 1
    by_length = {str(n): summary([t for t in found if t.length == n]) for n, _, _ in plan}
    record = {"text": source, "seed": args.seed, "alike": args.alike, "all": summary(found), "by length": by_length}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record | {"trials": [asdict(t) for t in found]}, indent=1) + "\n", encoding="utf-8")
    draw(found, args.out.with_suffix(".png"))
    for name, part in (*by_length.items(), ("all", record["all"])):
        print(name, part)
    return 0


if __name__ == "__main__":
    sys.exit(main())
