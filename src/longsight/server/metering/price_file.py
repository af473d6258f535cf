"""Price tables from files: TOML of our own, or the JSON map of per-token costs that LiteLLM and others publish."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longsight.server.metering.errors import PriceError
from longsight.server.metering.money import MICRO as MILLION
from longsight.server.metering.money import to_micro
from longsight.server.metering.prices import BASIS, LONG_TIER_TOKENS, PERCENT, CurrencyRate, PriceRow, PriceTable, Rates

Amount = Annotated[Decimal, Field(ge=0, le=1_000_000)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Rates(_Entry):
    input: Amount
    output: Amount
    cached_input: Amount | None = None

    def rates(self, model: str) -> Rates:
        cached = None if self.cached_input is None else to_micro(self.cached_input, f"{model}: cached_input")
        return Rates(to_micro(self.input, f"{model}: input"), to_micro(self.output, f"{model}: output"), cached)


class _Price(_Rates):
    model: Annotated[str, Field(min_length=1)]
    long: _Rates | None = None
    long_tier_tokens: Annotated[int, Field(strict=True, ge=0)] | None = None
    discount_percent: Annotated[Decimal, Field(ge=0, le=100, decimal_places=2)] = Decimal(0)
    valid_from: Annotated[date | None, Field(alias="from")] = None
    valid_until: Annotated[date | None, Field(alias="until")] = None

    def row(self) -> PriceRow:
        return PriceRow(
            self.model,
            self.rates(self.model),
            long=self.long.rates(f"{self.model}: long") if self.long else None,
            discount=int(self.discount_percent * (BASIS // PERCENT)),
            long_tier_tokens=self.long_tier_tokens,
            valid_from=self.valid_from,
            valid_until=self.valid_until,
        )


class _Currency(_Entry):
    code: Annotated[str, Field(pattern="^[A-Z]{3}$")]
    per_usd: Annotated[Decimal, Field(gt=0, le=10_000_000)]
    valid_from: Annotated[date | None, Field(alias="from")] = None
    valid_until: Annotated[date | None, Field(alias="until")] = None

    def rate(self) -> CurrencyRate:
        micro = to_micro(self.per_usd, f"{self.code}: per_usd")
        return CurrencyRate(self.code, micro, valid_from=self.valid_from, valid_until=self.valid_until)


class _File(_Entry):
    long_tier_tokens: Annotated[int, Field(strict=True, ge=0)] = LONG_TIER_TOKENS
    priority_percent: Annotated[int, Field(strict=True, ge=0, le=10_000)] = 150
    bill_errors: Annotated[bool, Field(strict=True)] = False
    price: list[_Price] = []
    currency: list[_Currency] = []


def load_prices(path: Path) -> PriceTable:
    """The table in a .toml file, or in a .json one of per-token costs. Raises PriceError, OSError."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return from_token_costs(json.loads(text, parse_float=Decimal))
        return _from_toml(tomllib.loads(text, parse_float=Decimal))
    except (PriceError, ValueError) as error:  # JSON's, TOML's and Unicode's errors are ValueErrors
        raise PriceError(f"the price file {path}: {error}") from error


def _from_toml(content: Mapping[str, Any]) -> PriceTable:
    try:
        file = _File.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        found = "" if first["type"] in ("missing", "extra_forbidden") else f" is {first['input']!r}"
        raise PriceError(f"{where}{found}: {first['msg']}") from error
    return PriceTable(
        rows=tuple(price.row() for price in file.price),
        currencies=tuple(currency.rate() for currency in file.currency),
        long_tier_tokens=file.long_tier_tokens,
        priority_percent=file.priority_percent,
        bill_errors=file.bill_errors,
    )


_INPUT, _OUTPUT, _CACHED = "input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost"
_ABOVE = re.compile(f"(?:{_INPUT}|{_OUTPUT}|{_CACHED})_above_([0-9]+)k_tokens")
_TABLE_BOUNDARY_K = 512


def from_token_costs(content: object, long_tier_tokens: int = LONG_TIER_TOKENS) -> PriceTable:
    """A map of model ids to costs in USD per token, numbers as Decimal. Entries without both costs aren't text models.

    "512k" is the table's own boundary, which price lists mean now as 524,288, now as 512,000; any other "Nk" is N
    thousand. Raises PriceError for prices below a micro-USD per million tokens and for models with several boundaries.
    """
    if not isinstance(content, Mapping):
        raise PriceError(f"holds a {type(content).__name__}; it must map model ids to costs")
    rows = []
    for model, entry in content.items():
        if model != "sample_spec" and isinstance(entry, Mapping) and _INPUT in entry and _OUTPUT in entry:
            rows.append(_token_cost_row(model, entry))
    return PriceTable(rows=tuple(rows), long_tier_tokens=long_tier_tokens)


def _token_cost_row(model: str, entry: Mapping[str, Any]) -> PriceRow:
    def per_million(name: str) -> int:
        value = entry[name]
        if isinstance(value, bool) or not isinstance(value, int | Decimal):
            raise PriceError(f"{model}: {name} is {value!r}; it must be a number")
        return to_micro(Decimal(value) * MILLION, f"{model}: {name}, per million tokens,")

    def rates(suffix: str) -> Rates:
        cached = next((name for name in (_CACHED + suffix, _CACHED) if entry.get(name) is not None), None)
        needed = (name + suffix if name + suffix in entry else name for name in (_INPUT, _OUTPUT))
        new, output = map(per_million, needed)
        return Rates(new, output, per_million(cached) if cached else None)

    boundaries = {int(match[1]) for name in entry if (match := _ABOVE.fullmatch(name))}
    if len(boundaries) > 1:
        raise PriceError(f"{model}: has prices above {sorted(boundaries)} thousand tokens; only one boundary is known")
    if not boundaries:
        return PriceRow(model, rates(""))
    (thousands,) = boundaries
    own = None if thousands == _TABLE_BOUNDARY_K else thousands * 1000
    return PriceRow(model, rates(""), long=rates(f"_above_{thousands}k_tokens"), long_tier_tokens=own)
