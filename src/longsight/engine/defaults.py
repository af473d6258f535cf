"""Sampling where a request is silent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longsight.engine.errors import EngineConfigError, InvalidRequestError
from longsight.engine.params import SamplingParams
from longsight.model import json_object

FILE = "generation_config.json"
BUILT_IN_CHAT_TOKENS = 4096  # the constructed model never ends an answer, and a small model may miss the end
LEAST_CHAT_TOKENS, MOST_CHAT_TOKENS = 4096, 131_072
CHAT_MAX_REPETITION = 256  # tokens; of a chat whose request names no limit


@dataclass(frozen=True)
class SamplingDefaults:
    """temperature, top_p and top_k of requests that do not say. Without a checkpoint's word: the OpenAI protocol's.

    max_new_tokens: tokens of a chat answer, if the checkpoint says.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int | None = None

    def chat_tokens(self, max_model_len: int, *, built_in: bool = False) -> int:
        """How long a chat answer may be whose request doesn't say: as the checkpoint says, else an eighth of the
        context, from 4,096 to 131,072 tokens, which is what MiniMax-M3's makers advise; 4,096 for a built-in model."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if built_in:
            return BUILT_IN_CHAT_TOKENS
        return min(max(max_model_len // 8, LEAST_CHAT_TOKENS), MOST_CHAT_TOKENS)

    @classmethod
    def from_checkpoint(cls, directory: Path) -> SamplingDefaults:
        """From generation_config.json, if there is one; `do_sample: false` means temperature 0.

        Raises EngineConfigError for values out of range, ConfigError for a file that is no JSON object.
        """
        path = directory / FILE
        if not path.is_file():
            return cls()
        config = json_object.load(path)
        found: dict[str, Any] = {
            name: config[name] for name in ("temperature", "top_p", "top_k") if config.get(name) is not None
        }
        if config.get("do_sample") is False:
            found["temperature"] = 0.0
        most = config.get("max_new_tokens")
        try:
            SamplingParams(**found)
        except (InvalidRequestError, TypeError) as error:
            raise EngineConfigError(f"{path}: {error}") from error
        if most is not None and (type(most) is not int or most < 1):
            raise EngineConfigError(f"{path}: max_new_tokens is {most!r}; it must be an integer of at least 1")
        return cls(**found, max_new_tokens=most)
