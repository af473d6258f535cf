"""Sampling where a request is silent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longsight.engine.errors import EngineConfigError, InvalidRequestError
from longsight.engine.params import SamplingParams
from longsight.model import json_object

FILE = "generation_config.json"


@dataclass(frozen=True)
class SamplingDefaults:
    """temperature, top_p and top_k of requests that do not say. Without a checkpoint's word: the OpenAI protocol's."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

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
        try:
            SamplingParams(**found)
        except (InvalidRequestError, TypeError) as error:
            raise EngineConfigError(f"{path}: {error}") from error
        return cls(**found)
