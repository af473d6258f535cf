"""tokenizer_config.json: what the transformers library needs to know of a tokenizer.json beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longsight.model.markup import PADDING
from longsight.model.tokenizer import Tokenizer

TOKENIZER_CONFIG = "tokenizer_config.json"


def tokenizer_config(
    tokenizer: Tokenizer, bos_token_id: int | None, eos_token_ids: Sequence[int], max_length: int
) -> dict[str, Any]:
    """Its contents. max_length: the model's, in tokens.

    The padding token is MiniMax-M3's own where the vocabulary has it, else the end token: with an attention mask any
    token serves.
    """
    names = tokenizer.tokens()
    special = {
        "bos_token": bos_token_id,
        "eos_token": eos_token_ids[0] if eos_token_ids else None,
        "pad_token": tokenizer.added_tokens.get(PADDING, eos_token_ids[0] if eos_token_ids else None),
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        **{key: names[token] for key, token in special.items() if token is not None and token < len(names)},
    }


def write_tokenizer_config(
    directory: Path, bos_token_id: int | None, eos_token_ids: Sequence[int], max_length: int
) -> int | None:
    """Write it beside `directory`/tokenizer.json; returns the id of the padding token, if there is any.

    Raises CheckpointError for a tokenizer.json that cannot be read.
    """
    tokenizer = Tokenizer.from_dir(directory)
    config = tokenizer_config(tokenizer, bos_token_id, eos_token_ids, max_length)
    (directory / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    pad = config.get("pad_token")
    return None if pad is None else tokenizer.tokens().index(pad)
