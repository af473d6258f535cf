"""Tool calls of a trained model: `python -m recipes.embedded.calls [MODEL]`.

Functions with invented names are declared, a user wants what one of them does, and the model answers: wishes are made
as in training, of the words of other texts. Each is asked for twice: with functions that are not strict, and with
strict ones, whose calls a grammar holds to their schemas. A call is valid if its arguments fit the schema of the
function that it names, and exact if it is the one that was wanted. The same seed gives the same wishes.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

from longsight import LLM, SamplingParams
from longsight.chat.events import Call, Message
from longsight.chat.grammar import tool_grammar
from longsight.chat.parser import OutputParser
from longsight.cli.demo_text import gather_text
from longsight.cli.progress import ProgressBar
from longsight.evals.report import table
from longsight.model.built_in import model_dir
from longsight.model.markup import END_OF_TURN, END_THINK
from longsight.model.tokenizer import FILE, Tokenizer
from longsight.ops.errors import LongsightError
from longsight.train.tasks import Context, build
from longsight.train.tokens import TokenFile, TokenWriter
from recipes.embedded.tokenizer import write

WISHES = 40
ROW, ANSWER_TOKENS = 1200, 120
CHARACTERS = 1 << 20  # of text that words and what comes before a wish are taken from
# What is declared and how it is asked for; settings of the task `tool-calls`.
FORMS: Mapping[str, Mapping[str, Any]] = {
    "one function": {"tools": [1, 1]},
    "one, its parameter not named in the wish": {"tools": [1, 1], "unnamed": 1.0},
    "one, its parameters described": {"tools": [1, 1], "described": 1.0},
    "three functions": {"tools": [3, 3]},
}


@dataclass(frozen=True)
class Wish:
    """prompt: the conversation as tokens. schemas: of the functions declared, by name."""

    prompt: Sequence[int]
    schemas: Mapping[str, Any]
    wanted: Call


def words_of(text: str, model: Path, tokenizer: Tokenizer, work: Path) -> TokenFile:
    """The text as a directory of tokens, which the task takes its words from."""
    with TokenWriter(work) as writer:
        shutil.copyfile(model / FILE, writer.directory / FILE)
        write([text], tokenizer, writer)
    return TokenFile(work)


def wishes(tokenizer: Tokenizer, words: TokenFile, form: Mapping[str, Any], seed: int) -> Iterator[Wish]:
    ids = tokenizer.added_tokens
    settings = {"text": "text", "thinking": 0.0, **form}
    task = build("tool-calls", settings, Context(tokenizer.vocab_size, tokenizer, {"text": words}))
    for i in range(WISHES):
        row = task.sample(np.random.default_rng([seed, i]), ROW).tokens.tolist()
        begin = row.index(ids[END_THINK]) + 1
        prompt, said = row[:begin], row[begin : row.index(ids[END_OF_TURN], begin)]
        declared = map(json.loads, re.findall("<tool>(.*?)</tool>", tokenizer.decode(prompt)))
        schemas = {function["name"]: function["parameters"] for function in declared}
        yield Wish(prompt, schemas, read(tokenizer.decode(said), schemas)[0])


def read(answer: str, schemas: Mapping[str, Any]) -> Sequence[Call]:
    parser = OutputParser("content", schemas)
    return Message.of([*parser.push(answer), *parser.finish()]).calls


def answer(llm: LLM, wish: Wish, strict: bool) -> Sequence[Call]:
    tools = list(wish.schemas.items())
    held = tool_grammar(tools, parallel=True, start="content", optional=True) if strict else None
    settings = SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0.0, grammar=held)
    return read(llm.generate([wish.prompt], settings, use_tqdm=False)[0].outputs[0].text, wish.schemas)


def judge(wish: Wish, calls: Sequence[Call]) -> tuple[bool, bool]:
    """Whether all calls are valid, and whether they are the one that was wanted."""
    try:
        found = [(call.name, json.loads(call.arguments)) for call in calls]
        for name, arguments in found:
            jsonschema.validate(arguments, wish.schemas[name])
    except (ValueError, KeyError, jsonschema.ValidationError):
        return False, False
    return bool(found), found == [(wish.wanted.name, json.loads(wish.wanted.arguments))]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m recipes.embedded.calls", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", nargs="?", help="a checkpoint directory; default: the embedded model")
    parser.add_argument("--text", type=Path, help="where words come from; default: what `longsight demo` reads")
    parser.add_argument("--seed", type=int, default=77)
    args = parser.parse_args(arguments)
    try:
        text, _ = gather_text(CHARACTERS, args.text)
        llm = LLM(args.model, max_model_len=ROW + ANSWER_TOKENS)
        with tempfile.TemporaryDirectory() as scratch, ProgressBar("asking") as bar:
            words = words_of(text, model_dir(args.model), llm.tokenizer, Path(scratch) / "words")
            rows = []
            for asked, (name, form) in enumerate(FORMS.items(), 1):
                counts = np.zeros((2, 2), dtype=int)
                for wish in wishes(llm.tokenizer, words, form, args.seed):
                    counts += [judge(wish, answer(llm, wish, strict)) for strict in (False, True)]
                rows.append([name, *map(str, counts.ravel())])
                bar.update(asked, len(FORMS), name)
    except LongsightError as error:
        print(f"calls: error: {error}", file=sys.stderr)
        return 1
    print("\n".join(table([f"declared, of {WISHES}", "valid", "exact", "strict: valid", "exact"], rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
