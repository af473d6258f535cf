"""Text <-> token ids through a checkpoint's own tokenizer.json (the `tokenizers` library)."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from longsight.model.errors import CheckpointError
from longsight.ops.errors import LongsightError

FILE = "tokenizer.json"
ByteIds = np.ndarray[Any, np.dtype[np.int32]]  # [256]


class TextError(LongsightError, ValueError):
    """A text that cannot be turned into tokens."""


class Tokenizer:
    """A checkpoint's tokenizer.

    A tokenizer whose tokens are single bytes is run as a table look-up: the library's own record of a million tokens
    takes hundreds of megabytes, the ids four. added_tokens: literals that are tokens of their own, and their ids.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, byte_ids: ByteIds | None) -> None:
        self._tokenizer = tokenizer
        self._byte_ids = byte_ids
        self._plain: tokenizers.Tokenizer | None = None
        added = tokenizer.get_added_tokens_decoder()
        self.added_tokens = {token.content: index for index, token in added.items()}
        # As the library does it: the leftmost match, and there the longest.
        longest_first = sorted(self.added_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @classmethod
    def from_dir(cls, directory: str | Path) -> Tokenizer:
        """Read `directory`/tokenizer.json. Raises CheckpointError if it is missing or unreadable."""
        return cls.from_file(Path(directory) / FILE)

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Read a tokenizer.json under any name. Raises CheckpointError if it is missing or unreadable."""
        try:
            text = path.read_text(encoding="utf-8")
            tokenizer = tokenizers.Tokenizer.from_str(text)
            return cls(tokenizer, _byte_ids(json.loads(text), tokenizer))
        except FileNotFoundError:
            raise CheckpointError(f"{path} does not exist; a checkpoint needs its {FILE}") from None
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path} is not a readable tokenizer: {error}") from error

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to vocab_size - 1, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def tokens(self) -> list[str]:
        """Every token as the vocabulary spells it, in the order of ids; "" where an id has none."""
        return [self._tokenizer.id_to_token(index) or "" for index in range(self.vocab_size)]

    def encode(self, text: str, add_special_tokens: bool = True) -> Sequence[int]:
        """Token ids of `text`. add_special_tokens: let the tokenizer put its own start or end tokens around it.

        Raises TextError if `text` holds half a surrogate pair, which no UTF-8 can spell.
        """
        _check(text)
        if self._byte_ids is None:
            return array("i", self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)
        ids, read = array("i"), 0
        for match in self._special.finditer(text):
            ids += _look_up(self._byte_ids, text[read : match.start()])
            ids.append(self.added_tokens[match.group()])
            read = match.end()
        return ids + _look_up(self._byte_ids, text[read:])

    def encode_plain(self, text: str) -> Sequence[int]:
        """Token ids of `text` with nothing around it, in which the literals of added tokens are ordinary characters."""
        return self.encode_plain_batch([text])[0]

    def encode_plain_batch(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """`encode_plain` of each text; the library works on several at a time."""
        for text in texts:
            _check(text)
        if self._byte_ids is not None:
            return [_look_up(self._byte_ids, text) for text in texts]
        if self._plain is None:
            self._plain = tokenizers.Tokenizer.from_str(
                json.dumps({**json.loads(self._tokenizer.to_str()), "added_tokens": []})
            )
        return [array("i", each.ids) for each in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`, without special tokens by default; bytes that are not valid UTF-8 become U+FFFD."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Each token as the vocabulary spells it; "" where an id has none."""
        return [self._tokenizer.id_to_token(index) or "" for index in ids]


def _check(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TextError(f"character {error.start} of the text, {text[error.start]!r}, is no Unicode text") from None


def _look_up(byte_ids: ByteIds, text: str) -> array[int]:
    return array("i", byte_ids[np.frombuffer(text.encode(), dtype=np.uint8)].tobytes())


def _byte_ids(config: dict[str, Any], tokenizer: tokenizers.Tokenizer) -> ByteIds | None:
    """The id of each byte, if every token is one byte and nothing else touches the text; else None."""
    model, pre = config.get("model") or {}, config.get("pre_tokenizer") or {}
    plain = (
        model.get("type") == "BPE"
        and not any(
            model.get(k) for k in ("merges", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
        )
        and pre.get("type") == "ByteLevel"
        and not pre.get("add_prefix_space")
        and not any(config.get(k) for k in ("normalizer", "post_processor", "truncation", "padding"))
        and not any(
            token.get(k)
            for token in config.get("added_tokens") or ()
            for k in ("single_word", "lstrip", "rstrip", "normalized")
        )
    )
    if not plain:
        return None
    ids = np.full(256, -1, dtype=np.int32)
    for byte, character in byte_characters().items():
        token = tokenizer.token_to_id(character)
        if token is None:
            return None
        ids[byte] = token
    return ids


def byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
