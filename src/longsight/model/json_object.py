"""Typed, checked reading of JSON objects that strangers wrote."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longsight.model.errors import ConfigError

MAX_INTEGER = 2**31 - 1


class JsonObject:
    """One JSON object: typed reads that remember which keys were asked for."""

    def __init__(self, data: Mapping[str, Any], where: str = "") -> None:
        self.data, self.where = data, where
        self._read: set[str] = set()

    def get(self, key: str) -> Any:
        self._read.add(key)
        return self.data.get(key)

    def fail(self, key: str, expected: str) -> ConfigError:
        return ConfigError(f"config: {self.where}{key} is {reprlib.repr(self.data.get(key))}; {expected}")

    def integer(self, key: str, *, least: int = 0, most: int = MAX_INTEGER) -> int | None:
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.fail(key, f"expected an integer from {least} to {most}")
        return value

    def number(self, key: str) -> float | None:
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.fail(key, "expected a finite number")
        return float(value)

    def boolean(self, key: str) -> bool | None:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.fail(key, "expected true or false")
        return value

    def object(self, key: str) -> JsonObject | None:
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.fail(key, "expected an object")
        return JsonObject(value, f"{self.where}{key}.")

    def kinds(self, key: str, names: Mapping[Any, str], layers: int) -> tuple[str, ...] | None:
        """A list with one entry per layer, each one of `names`; a scalar stands for all layers."""
        value = self.get(key)
        if value is None:
            return None
        values = value if isinstance(value, list | tuple) else [value] * layers
        if len(values) != layers or not all(isinstance(v, str | int) and v in names for v in values):
            accepted = ", ".join(repr(name) for name in names)
            raise self.fail(key, f"expected {layers} entries (num_hidden_layers), each one of {accepted}")
        return tuple(names[v] for v in values)

    def finish(self, ignored: frozenset[str], rules: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse every key that was neither read, ruled nor metadata."""
        for key, value in self.data.items():
            if value is None or key in self._read or key in ignored or str(key).startswith("_"):
                continue
            if key in rules:
                if value not in rules[key]:
                    raise self.fail(key, f"only {' or '.join(map(repr, rules[key]))} is implemented")
                continue
            if key in ("quantization_config", "compression_config"):
                raise self.fail(
                    key, "quantised checkpoints are not supported; use bfloat16, float16 or float32 weights"
                )
            raise self.fail(
                key, "this option is unknown and may change results; remove it from config.json if it does not"
            )


def load(file: Path) -> Mapping[str, Any]:
    """A JSON object from a file; ConfigError names the file when it is missing or not one."""
    try:
        data = json.loads(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{file} must hold a JSON object, got {type(data).__name__}")
    return data
