"""New tokenizers: byte-level BPE learned from text, and plain lists of words."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from longsight.model.errors import ConfigError
from longsight.model.markup import DOCUMENT, END_OF_TURN
from longsight.train.errors import DataError

BOS, EOS = DOCUMENT, END_OF_TURN
DIGIT_GROUP = 3  # digits of the longest numbers that can be one token
# Words with the mark or blank before them, numbers by groups of up to three digits from the left, punctuation, blanks.
WORDS = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Words and numbers with at most a blank before them; and the same with that blank apart.
EVEN = r"'(?i:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
APART = r"'(?i:[sdmt]|ll|ve|re)|\p{L}+|\p{N}{1,3}|[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)| (?=\S)|\s+"
WITH_BLANK = 0.4  # of an even tokenizer's merges
BLANK = "\u0120"  # how byte-level tokenizers write a blank
LEARNED_AT_ONCE = 1 << 16  # characters: memory of the learner grows with the longest text


def train(
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: Sequence[str] = (BOS, EOS),
    *,
    markers: Sequence[str] = (),
    group_digits: bool = False,
    even: bool = False,
) -> tokenizers.Tokenizer:
    """A byte-level BPE of `vocab_size` tokens: the special ones first, the markers, then 256 bytes, then merges.

    Every text can be written in it and read back. Digits are tokens of their own, so that numbers are copied digit by
    digit; with group_digits, every group of one to three digits is one token, at the end of the vocabulary, and a
    longer number is split into groups of three from the left. even: a word is split alike with a blank before it and
    without, so that it can be copied from a sentence into a call; merges are learned without blanks, and a share of the
    vocabulary is the tokens that most often begin a word, once more with a blank, as are the groups of digits. markers:
    tokens of their own too, which stay in the text when ids are decoded without special tokens. There may be fewer
    tokens than asked for where the texts hold too few different words.
    Raises ConfigError for a vocabulary too small or special tokens that are empty or come twice.
    """
    added = [*special_tokens, *markers]
    groups = _groups(even) if group_digits else []
    numbers = len(groups)
    least = 256 + len(added) + numbers
    if vocab_size < least:
        all_groups = f" and {numbers:,} groups of digits" if numbers else ""
        raise ConfigError(
            f"vocab_size is {vocab_size}; 256 bytes, {len(added)} special tokens{all_groups} need {least}"
        )
    if len(set(added)) < len(added) or not all(added):
        raise ConfigError(f"special_tokens are {added!r}; expected different texts")
    blanks = int(WITH_BLANK * (vocab_size - least)) if even else 0
    apart, whole = (APART, EVEN) if even else (WORDS, WORDS) if group_digits else (None, None)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    # Merges learned here join no digits: their groups follow whole.
    tokenizer.pre_tokenizer = _pieces(apart, single_digits=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - numbers - blanks,
        special_tokens=[tokenizers.AddedToken(token, special=True, normalized=False) for token in added],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    parts: Iterable[str] = _parts(texts)
    if even:
        parts = list(parts)  # read twice
    tokenizer.train_from_iterator(parts, trainer)
    begin = _beginnings(tokenizer, parts, blanks) if even else ()
    tokenizer.pre_tokenizer = _pieces(whole, single_digits=not group_digits)
    return _finished(tokenizer, markers, groups, begin)


def _pieces(pattern: str | None, single_digits: bool) -> pre_tokenizers.PreTokenizer:
    """What merges stay within: matches of `pattern`, or where it is None those of the byte-level default."""
    words = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")] if pattern else []
    digits = [pre_tokenizers.Digits(individual_digits=True)] if single_digits else []
    characters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern)
    return pre_tokenizers.Sequence([*words, *digits, characters])


def _beginnings(tokenizer: tokenizers.Tokenizer, parts: Iterable[str], count: int) -> list[str]:
    """The tokens that most often follow a blank of their own, numbers and added tokens aside."""
    found: Counter[int] = Counter()
    blank, added = tokenizer.token_to_id(BLANK), tokenizer.get_added_tokens_decoder()
    for part in parts:
        found.update(after for before, after in pairwise(tokenizer.encode(part).ids) if before == blank)
    words = [tokenizer.id_to_token(index) or BLANK for index, _ in found.most_common() if index not in added]
    return [word for word in words if not word.isdigit() and not word.startswith(BLANK)][:count]


def _groups(with_blank: bool) -> list[str]:
    """The groups of digits that are no tokens yet: 1,100, and with_blank all 1,110 once more after a blank."""
    groups = [f"{number:0{size}}" for size in range(1, DIGIT_GROUP + 1) for number in range(10**size)]
    return groups[10:] + ([BLANK + group for group in groups] if with_blank else [])


def _finished(
    tokenizer: tokenizers.Tokenizer, markers: Sequence[str], groups: Sequence[str], begin: Sequence[str]
) -> tokenizers.Tokenizer:
    """With the markers no longer special, with a blank before each of `begin`, and with groups of digits."""
    config = json.loads(tokenizer.to_str())
    for token in config["added_tokens"]:
        token["special"] = token["content"] not in markers
    vocabulary, merges = config["model"]["vocab"], config["model"]["merges"]
    for word in begin:
        # The last merge there is: whatever follows the blank has been put together before.
        vocabulary[BLANK + word] = len(vocabulary)
        merges.append([BLANK, word])
    for group in groups:
        vocabulary[group] = len(vocabulary)
        # Digits in every way, so that it does not matter which of their pairs is merged first; a blank last.
        cuts = (1,) if group.startswith(BLANK) else range(1, len(group))
        merges += [[group[:cut], group[cut:]] for cut in cuts]
    return tokenizers.Tokenizer.from_str(json.dumps(config))


def of_words(words: Sequence[str], *, bos: str, unknown: str) -> tokenizers.Tokenizer:
    """A tokenizer whose token i is words[i], with blanks between; `bos` goes before every text.

    Each word owns the blank before it and is written in the letters of byte-level tokenizers: those are what a token's
    bytes can be read from, which grammars and streaming need.
    """
    vocabulary = {word if word == bos else BLANK + word: index for index, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=BLANK + unknown))
    steps = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, words.index(bos))]
    )
    tokenizer.add_special_tokens([tokenizers.AddedToken(bos, special=True, normalized=False)])
    return tokenizer


def file_hash(path: Path) -> str:
    """SHA-256 of a tokenizer.json, which token files remember. Raises DataError if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def cut(text: str, size: int) -> Iterator[str]:
    """Pieces of about `size` characters that tokenize as the whole does: a cut is before a single blank between words.

    That holds for tokenizers in which a word owns the blank before it, as all byte-level ones here; where there is no
    such blank within another `size` characters, the cut is made anyway.
    """
    start = 0
    while len(text) - start > size:
        end = start + size
        limit = min(end + size, len(text) - 1)
        while end < limit and not _between_words(text, end):
            end += 1
        yield text[start:end]
        start = end
    yield text[start:]


def _between_words(text: str, index: int) -> bool:
    return text[index] == " " and not text[index - 1].isspace() and not text[index + 1].isspace()


def _parts(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from cut(text, LEARNED_AT_ONCE)
