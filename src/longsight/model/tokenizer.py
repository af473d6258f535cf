"""Text <-> token ids through a checkpoint's own tokenizer.json (the `tokenizers` library)."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from longsight.model.errors import CheckpointError

FILE = "tokenizer.json"


class Tokenizer:
    """A checkpoint's tokenizer.

    A tokenizer whose tokens are single bytes is run as a table look-up: the library's own record of a million tokens
    takes hundreds of megabytes, the ids four.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, byte_ids: np.ndarray[Any, np.dtype[np.int32]] | None) -> None:
        self._tokenizer = tokenizer
        self._byte_ids = byte_ids
        self._added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]

    @classmethod
    def from_dir(cls, directory: str | Path) -> Tokenizer:
        """Read `directory`/tokenizer.json. Raises CheckpointError if it is missing or unreadable."""
        path = Path(directory) / FILE
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

    def encode(self, text: str, add_special_tokens: bool = True) -> Sequence[int]:
        """Token ids of `text`. add_special_tokens: let the tokenizer put its own start or end tokens around it."""
        if self._byte_ids is not None and not any(token in text for token in self._added):
            return array("i", self._byte_ids[np.frombuffer(text.encode(), dtype=np.uint8)].tobytes())
        return array("i", self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens; bytes that are no UTF-8 become U+FFFD."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def _byte_ids(config: dict[str, Any], tokenizer: tokenizers.Tokenizer) -> np.ndarray[Any, np.dtype[np.int32]] | None:
    """int32 [256]: the id of each byte, if every token is one byte and nothing else touches the text; else None."""
    model, pre = config.get("model") or {}, config.get("pre_tokenizer") or {}
    plain = (
        model.get("type") == "BPE"
        and not model.get("merges")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and pre.get("type") == "ByteLevel"
        and not pre.get("add_prefix_space")
        and config.get("normalizer") is None
        and config.get("post_processor") is None
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
