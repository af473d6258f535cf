"""The corpus as token ids, and the tokenizer that wrote them: `python -m recipes.embedded.tokenizer [--plain]`.

Reads work/corpus.jsonl (`python -m recipes.embedded.corpus`) and writes a directory for `[[data]] tokens = ...` with
its tokenizer.json: work/even, in which a word is split alike with a blank before it and without, for the embedded
model; or --plain, work/tokens, an ordinary BPE of 4,096 tokens, for examples/text.toml and the quality study. Every
document begins with `]~!b[` and ends with `[e~[`. To hold some out, name the directory twice, with part = [0.0, 0.99]
and part = [0.99, 1.0].
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path

import tokenizers

from longsight.cli.progress import ProgressBar
from longsight.model.markup import DOCUMENT, END_OF_TURN, END_THINK, NAMESPACE, THINK, TURN
from longsight.model.tokenizer import FILE, Tokenizer
from longsight.train.errors import DataError
from longsight.train.texts import Texts
from longsight.train.tokenizer import file_hash, train
from longsight.train.tokens import TokenWriter, write_texts
from recipes.embedded.corpus import WORK

VOCAB_SIZE, PLAIN_SIZE = 7168, 4096
PAD = "]!p~["
SPECIAL = (PAD, DOCUMENT, TURN, END_OF_TURN)
MARKERS = (NAMESPACE, THINK, END_THINK)  # decoded as text: the parser of answers looks for them
# Learned from beside the corpus, so that what every conversation is written with takes few tokens.
CONVERSATION = """system
developer
user
ai
tool
<tools>
<tool>{"name": "get_weather", "description": "", "parameters": {"type": "object", "properties": {"city": {"type": \
"string"}, "days": {"type": "integer"}}, "required": ["city"]}}</tool>
</tools>
<tool_call>
<invoke name="get_weather"><city>Paris</city><days>3</days></invoke>
</tool_call>
<response></response>
<item></item>
"""
REPEATED = 3000
LEARNED_FROM = 20_000_000  # characters of the corpus: more changes few merges
SHOWN = 20_000  # characters of one document learned from


def learn(texts: Iterable[str], vocab_size: int | None = None, *, plain: bool = False) -> tokenizers.Tokenizer:
    """A byte-level BPE in which each number of up to three digits and each marker of the chat format is one token."""
    size = vocab_size or (PLAIN_SIZE if plain else VOCAB_SIZE)
    texts = chain(repeat(CONVERSATION, REPEATED), texts)
    return train(texts, size, SPECIAL, markers=MARKERS, group_digits=True, even=not plain)


def _some(texts: Iterable[str]) -> Iterator[str]:
    size = 0
    for text in texts:
        if size >= LEARNED_FROM:
            return
        yield text[:SHOWN]
        size += len(text[:SHOWN])


def write(texts: Iterable[str], tokenizer: Tokenizer, writer: TokenWriter) -> None:
    """The documents of a token directory that holds its tokenizer already."""
    writer.begin(tokenizer.vocab_size, file_hash(writer.directory / FILE))
    ids = tokenizer.added_tokens
    write_texts(texts, tokenizer, writer, before=[ids[DOCUMENT]], after=[ids[END_OF_TURN]])


def make(corpus: Path, out: Path, plain: bool = False) -> None:
    """Raises DataError if `corpus` cannot be read or `out` exists."""
    started = time.monotonic()
    texts = Texts.find([corpus])
    with TokenWriter(out) as writer:
        file = writer.directory / FILE
        learn(_some(texts), plain=plain).save(str(file))
        tokenizer = Tokenizer.from_file(file)
        with ProgressBar("tokenizing", is_bytes=True) as bar:
            texts.progress = bar.update
            write(texts, tokenizer, writer)
    size = sum(len(text) for text in Texts.find([corpus]))
    print(
        f"{out}: documents {writer.documents:,}, tokens {writer.tokens:,}, vocabulary {tokenizer.vocab_size:,}, "
        f"characters a token {size / writer.tokens:.2f}, seconds {time.monotonic() - started:.0f}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m recipes.embedded.tokenizer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--corpus", type=Path, default=WORK / "corpus.jsonl", metavar="FILE", help="(default %(default)s)"
    )
    parser.add_argument("--plain", action="store_true", help="an ordinary BPE, for the study")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"(default {WORK / 'even'}, or {WORK / 'tokens'})")
    options = parser.parse_args(arguments)
    try:
        make(options.corpus, options.out or WORK / ("tokens" if options.plain else "even"), options.plain)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
