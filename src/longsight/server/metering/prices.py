"""Prices: which rates hold for a request, and what it comes to. Integers throughout, rounded once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from functools import cached_property
from hashlib import sha256

from longsight.server.metering.errors import PriceError
from longsight.server.metering.money import MICRO, from_micro, half_even
from longsight.server.usage import UsageRecord

LONG_TIER_TOKENS = 524_288
USD = "USD"
BASIS = 10_000  # discounts count in basis points
PERCENT = 100
MOST = 1 << 53  # micro-units in one line: 9 thousand million of a currency, and exact in every JSON reader
TIERS = ("standard", "long")
STATUSES = ("ok", "cancelled", "error")


@dataclass(frozen=True)
class Rates:
    """List prices in micro-USD per million tokens. cached_input None: cached tokens cost what others do."""

    input: int
    output: int
    cached_input: int | None = None

    def times(self, record: UsageRecord) -> int:
        """Micro-USD times a million."""
        cached = self.input if self.cached_input is None else self.cached_input
        fresh = record.prompt_tokens - record.cached_tokens
        return fresh * self.input + record.cached_tokens * cached + record.completion_tokens * self.output


@dataclass(frozen=True)
class Dated:
    """Something that holds from a day on (inclusive) until another (exclusive), in UTC; None: without end."""

    valid_from: date | None = field(default=None, kw_only=True)
    valid_until: date | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.valid_from and self.valid_until and self.valid_from >= self.valid_until:
            raise PriceError(f"from {self.valid_from} until {self.valid_until} holds on no day")

    def holds(self, day: date) -> bool:
        return (self.valid_from is None or self.valid_from <= day) and (
            self.valid_until is None or day < self.valid_until
        )

    def overlaps(self, other: Dated) -> bool:
        def before(a: Dated, b: Dated) -> bool:
            return a.valid_until is not None and b.valid_from is not None and a.valid_until <= b.valid_from

        return not before(self, other) and not before(other, self)


@dataclass(frozen=True)
class PriceRow(Dated):
    """A model's list prices and what is taken off them.

    long: the rates of requests with more input tokens, cached ones included, than long_tier_tokens (the table's
    boundary if None); None: one price at any length. discount: basis points.
    """

    model: str
    rates: Rates
    long: Rates | None = None
    discount: int = 0
    long_tier_tokens: int | None = None


@dataclass(frozen=True)
class CurrencyRate(Dated):
    """Micro-units of a currency for one USD."""

    currency: str
    per_usd: int


@dataclass(frozen=True)
class Charge:
    """What a request comes to; a `usage.Cost`.

    tier: "standard" or "long". list_usd_micro: before the discount. amounts: micro-units in each currency that has a
    rate on the request's day, USD included. currency: the one that is shown.
    """

    tier: str
    discount: int
    list_usd_micro: int
    amounts: dict[str, int]
    price_version: str
    currency: str = USD

    @property
    def usd_micro(self) -> int:
        return self.amounts[USD]

    @property
    def shown(self) -> str:
        """The currency amounts are shown in: USD where the chosen one has no rate on that day."""
        return self.currency if self.currency in self.amounts else USD

    def header(self) -> str:
        """'0.000426 USD'."""
        return f"{from_micro(self.amounts[self.shown])} {self.shown}"

    def as_json(self) -> dict[str, object]:
        micro = self.amounts[self.shown]
        return {
            "amount": from_micro(micro),
            "amount_micro": micro,
            "currency": self.shown,
            "usd_micro": self.usd_micro,
            "tier": self.tier,
            "price_version": self.price_version,
        }


@dataclass(frozen=True)
class PriceTable:
    """Price and currency rows, and the rules around them.

    priority_percent: what service tier "priority" costs of the price that all others have. bill_errors: whether a
    request that ended in an error is charged for what it used. Raises PriceError if two rows hold for one model, or
    currency, on the same day.
    """

    rows: Sequence[PriceRow] = ()
    currencies: Sequence[CurrencyRate] = ()
    long_tier_tokens: int = LONG_TIER_TOKENS
    priority_percent: int = 150
    bill_errors: bool = False

    def __post_init__(self) -> None:
        _refuse_overlaps("model", [(row.model.lower(), row) for row in self.rows])
        _refuse_overlaps("currency", [(row.currency, row) for row in self.currencies])
        if any(row.currency == USD for row in self.currencies):
            raise PriceError("prices are in USD, so there is no rate for it")

    @cached_property
    def content(self) -> str:
        """Everything that decides an amount, as JSON: kept in the ledger so that old lines can be computed again."""
        return json.dumps(asdict(self), sort_keys=True, default=str)

    @cached_property
    def version(self) -> str:
        return sha256(self.content.encode()).hexdigest()[:12]

    @cached_property
    def known_currencies(self) -> tuple[str, ...]:
        return tuple(sorted({USD, *(row.currency for row in self.currencies)}))

    @cached_property
    def _by_model(self) -> dict[str, list[PriceRow]]:
        found: dict[str, list[PriceRow]] = {}
        for row in self.rows:
            found.setdefault(row.model.lower(), []).append(row)
        return found

    def row(self, model: str, day: date) -> PriceRow | None:
        """The row for a model id, upper or lower case; 'org/name' falls back to 'name'. None: the model is free."""
        name = model.lower()
        rows = self._by_model.get(name) or self._by_model.get(name.rsplit("/", 1)[-1], [])
        return next((row for row in rows if row.holds(day)), None)

    def charge(self, record: UsageRecord, currency: str = USD) -> Charge:
        """Raises PriceError for counts that cannot be."""
        _check(record)
        day = day_of(record.started)
        row = self.row(record.model, day)
        rates, tier = (Rates(0, 0), TIERS[0]) if row is None else self._tier(row, record.prompt_tokens)
        discount = row.discount if row else 0
        if record.status == "error" and not self.bill_errors:
            rates = Rates(0, 0)
        percent = self.priority_percent if record.service_tier == "priority" else PERCENT
        # USD in micro-units is this over MICRO * PERCENT, then less the discount.
        exact = rates.times(record) * percent
        net, denominator = exact * (BASIS - discount), MICRO * PERCENT * BASIS
        amounts = {USD: half_even(net, denominator)}
        for rate in self.currencies:
            if rate.holds(day):
                amounts[rate.currency] = half_even(net * rate.per_usd, denominator * MICRO)
        listed = half_even(exact, MICRO * PERCENT)
        if max(listed, *amounts.values()) > MOST:
            raise PriceError(f"{record.request_id}: comes to {amounts} micro-units; the most is {MOST}")
        return Charge(tier, discount, listed, amounts, self.version, currency)

    def _tier(self, row: PriceRow, prompt_tokens: int) -> tuple[Rates, str]:
        """The whole request at the long rates once its input passes the boundary, which itself is still standard."""
        boundary = self.long_tier_tokens if row.long_tier_tokens is None else row.long_tier_tokens
        if row.long is not None and prompt_tokens > boundary:
            return row.long, TIERS[1]
        return row.rates, TIERS[0]


def day_of(seconds: float) -> date:
    """The UTC day of a Unix time."""
    return datetime.fromtimestamp(seconds, UTC).date()


def _check(record: UsageRecord) -> None:
    if not record.request_id:
        raise PriceError("a request without an id cannot be told from others")
    if record.status not in STATUSES:
        raise PriceError(f"{record.request_id}: status is {record.status!r}; known are {', '.join(STATUSES)}")
    counts = (record.prompt_tokens, record.cached_tokens, record.completion_tokens, record.reasoning_tokens)
    if min(counts) < 0 or max(counts) > MOST:
        raise PriceError(f"{record.request_id}: token counts are {counts}; each must be from 0 to 2^53")
    if record.cached_tokens > record.prompt_tokens:
        raise PriceError(f"{record.request_id}: {record.cached_tokens} cached of {record.prompt_tokens} prompt tokens")


def _refuse_overlaps(what: str, rows: Sequence[tuple[str, Dated]]) -> None:
    by_name: dict[str, list[Dated]] = {}
    for name, row in rows:
        for other in by_name.setdefault(name, []):
            if row.overlaps(other):
                raise PriceError(f"two rows hold for the {what} {name!r} on the same day; end one with until")
        by_name[name].append(row)


def usd(amount: str) -> int:
    """Micro-units of a written amount, for tables in code."""
    whole, _, part = amount.partition(".")
    return int(whole) * MICRO + int(part.ljust(6, "0") or 0)


DEFAULT_PRICES = PriceTable(
    rows=(
        PriceRow(
            "MiniMax-M3",
            Rates(usd("0.60"), usd("2.40"), usd("0.12")),
            long=Rates(usd("1.20"), usd("4.80"), usd("0.24")),
            discount=5_000,
        ),
        PriceRow("MiniMax-M2", Rates(usd("0.50"), usd("2.20"))),
    ),
    currencies=(CurrencyRate("DZD", 350 * MICRO), CurrencyRate("CNY", 7 * MICRO)),
)
