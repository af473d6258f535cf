"""`longsight tokenize`: text files -> a token file to train on."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from longsight.cli.numbers import positive
from longsight.cli.paths import InputPath, NewDirectory
from longsight.cli.progress import ProgressBar

if TYPE_CHECKING:
    from longsight.model.tokenizer import Tokenizer
    from longsight.train.texts import Texts

EPILOG = """\
examples:
  longsight tokenize books/ --train-vocab 4096 --out data/books          # learn a tokenizer from the text, then use it
  longsight tokenize more.jsonl --tokenizer data/books --out data/more   # the same tokenizer for more text
  longsight tokenize src/ --suffix .py,.md --tokenizer path/to/checkpoint --out data/code

A file is one document. A .jsonl file has one document a line, an object with its text under "text" (--text-key names
another). Each document is wrapped in --bos and --eos if the tokenizer has them; spelled inside a document they are
ordinary text.

--out becomes a directory: tokens.bin (16 or 32 bits an id), documents.bin (where documents begin), header.json and the
tokenizer.json. A training configuration names it so:

  [tokenizer]
  path = "data/books/tokenizer.json"

  [[data]]
  name = "books"
  tokens = "data/books"
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "tokenize",
        help="turn text files into token ids to train on",
        description="Turn text files into a token file to train on, with a tokenizer learned from them or given.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs", nargs="+", type=InputPath(), metavar="PATH", help="text files, .jsonl files, or directories of them"
    )
    parser.add_argument(
        "--out", type=NewDirectory(), required=True, metavar="DIR", help="where to write; must not exist"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--tokenizer", type=InputPath(), metavar="PATH", help="a tokenizer.json, or a directory with one in it"
    )
    source.add_argument(
        "--train-vocab", type=positive, metavar="N", help="learn a byte-level BPE of N tokens from this text"
    )
    parser.add_argument(
        "--special",
        action="append",
        default=[],
        metavar="TOKEN",
        help="with --train-vocab: another special token, after --bos and --eos; may be repeated",
    )
    parser.add_argument(
        "--bos", default="]~!b[", metavar="TOKEN", help="put before each document (default %(default)s)"
    )
    parser.add_argument("--eos", default="[e~[", metavar="TOKEN", help="put after each document (default %(default)s)")
    parser.add_argument(
        "--suffix",
        metavar=".A,.B",
        help="files to take from directories (default .txt,.md,.rst,.py,.jsonl)",
    )
    parser.add_argument("--text-key", default="text", metavar="KEY", help="of JSON lines (default %(default)s)")


def run(args: argparse.Namespace) -> int:
    from longsight.model.tokenizer import FILE, Tokenizer
    from longsight.train.texts import SUFFIXES, Texts
    from longsight.train.tokenizer import file_hash
    from longsight.train.tokens import TokenWriter, write_texts

    suffixes = tuple(args.suffix.split(",")) if args.suffix else SUFFIXES
    texts = Texts.find(args.inputs, suffixes=suffixes, text_key=args.text_key)
    given = args.tokenizer / FILE if args.tokenizer and args.tokenizer.is_dir() else args.tokenizer
    content = given.read_bytes() if given else _learned(texts, args).encode()
    with TokenWriter(args.out) as writer:
        file = writer.directory / FILE
        file.write_bytes(content)
        tokenizer = Tokenizer.from_file(file)
        writer.begin(tokenizer.vocab_size, file_hash(file))
        with ProgressBar("tokenizing", is_bytes=True) as bar:
            texts.progress = bar.update
            before, after = _ids(tokenizer, args.bos), _ids(tokenizer, args.eos)
            write_texts(texts, tokenizer, writer, before=before, after=after)
    print(f"{args.out}: documents {writer.documents:,}, tokens {writer.tokens:,}, vocabulary {tokenizer.vocab_size:,}")
    if texts.skipped:
        print(f"{len(texts.skipped):,} files are no UTF-8 text and were left out, the first {texts.skipped[0]}")
    return 0


def _learned(texts: Texts, args: argparse.Namespace) -> str:
    from longsight.train.tokenizer import train

    specials = list(dict.fromkeys([args.bos, args.eos, *args.special]))
    with ProgressBar("learning the vocabulary", is_bytes=True) as bar:
        texts.progress = bar.update
        return train(texts, args.train_vocab, specials).to_str(pretty=True)


def _ids(tokenizer: Tokenizer, token: str) -> list[int]:
    """The id of a special token; none where the tokenizer has no such token."""
    return [tokenizer.added_tokens[token]] if token in tokenizer.added_tokens else []
