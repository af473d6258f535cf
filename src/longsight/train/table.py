"""Typed, checked reading of one TOML table: every error names the key, its value and what is accepted."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Mapping
from typing import Any

from longsight.model.errors import ConfigError

MAX_INTEGER = 2**53


class Table:
    """One table of a TOML file: typed reads that remember which keys were asked for.

    `where` is the table's place in the file, as in "stage 2.". A read of a missing key gives the default; without a
    default the key is required.
    """

    def __init__(self, data: Mapping[str, Any], where: str = "") -> None:
        self.data, self.where = data, where
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def fail(self, key: str, expected: str) -> ConfigError:
        if key not in self.data:
            return ConfigError(f"{self.where}{key} is missing; expected {expected}")
        return ConfigError(f"{self.where}{key} is {reprlib.repr(self.data[key])}; expected {expected}")

    def get(self, key: str) -> Any:
        """The value as TOML has it, None if there is none."""
        self._read.add(key)
        return self.data.get(key)

    def integer(self, key: str, default: int | None = None, *, least: int = 0, most: int = MAX_INTEGER) -> int:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.fail(key, f"a whole number from {least} to {most}")
        return value

    def number(
        self, key: str, default: float | None = None, *, least: float = 0.0, most: float = math.inf, above: bool = False
    ) -> float:
        """A finite number of at least `least` (with above=True: more than it) and at most `most`."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not good or not least <= value <= most or (above and value == least):
            bound = f" and at most {most:g}" if most < math.inf else ""
            raise self.fail(key, f"a number {'above' if above else 'of at least'} {least:g}{bound}")
        return float(value)

    def numbers(
        self, key: str, default: tuple[float, float], *, least: float = 0.0, most: float = math.inf
    ) -> tuple[float, float]:
        """Two numbers, the first at most the second."""
        value = self.get(key)
        if value is None:
            return default
        good = isinstance(value, list) and len(value) == 2
        good = good and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        if not good or not least <= value[0] <= value[1] <= most:
            raise self.fail(key, f"two rising numbers from {least:g} to {most:g}")
        return float(value[0]), float(value[1])

    def integers(
        self, key: str, default: tuple[int, int], *, least: int = 0, most: int = MAX_INTEGER
    ) -> tuple[int, int]:
        """Two whole numbers, the first at most the second."""
        value = self.get(key)
        if value is None:
            return default
        good = isinstance(value, list) and len(value) == 2
        good = good and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        if not good or not least <= value[0] <= value[1] <= most:
            raise self.fail(key, f"two rising whole numbers from {least} to {most}")
        return int(value[0]), int(value[1])

    def boolean(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not value:
            raise self.fail(key, "a text")
        return value

    def choice(self, key: str, accepted: Collection[str], default: str | None = None) -> str:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or value not in accepted:
            raise self.fail(key, f"one of {', '.join(accepted)}")
        return value

    def table(self, key: str) -> Table:
        """A table inside; an empty one if it is missing."""
        value = self.get(key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self.fail(key, "a table")
        return Table(value, f"{self.where}{key}.")

    def tables(self, key: str) -> list[Table]:
        """The tables of [[key]]."""
        value = self.get(key)
        if value is None:
            value = []
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            raise self.fail(key, f"tables, each under [[{key}]]")
        return [Table(item, f"{self.where}{key} {number}.") for number, item in enumerate(value, 1)]

    def rest(self) -> dict[str, Any]:
        """What was not read, which counts as read from here on."""
        rest = {key: value for key, value in self.data.items() if key not in self._read}
        self._read |= set(rest)
        return rest

    def finish(self, accepted: Collection[str] | None = None) -> None:
        """Refuse every key that nothing asked for."""
        for key, value in self.data.items():
            if key not in self._read:
                known = ", ".join(sorted(accepted or self._read))
                raise ConfigError(f"{self.where}{key} = {reprlib.repr(value)} is not known; accepted: {known}")
