"""Usage as people and programs ask for it: what to sum and between which days, and the sums as JSON and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date

from longsight.ops import LongsightError
from longsight.server.metering.ledger import GROUPS, Group, Ledger, Sums, total
from longsight.server.metering.money import from_micro
from longsight.server.metering.prices import USD


class QueryError(LongsightError):
    """A question about usage that has no answer. param: what is wrong with it."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class Query:
    """by: any of GROUPS. first_day, last_day: in UTC, both included; None: all there is. organisation: None for all."""

    by: tuple[str, ...] = ("model",)
    currency: str = USD
    first_day: date | None = None
    last_day: date | None = None
    organisation: str | None = None

    @classmethod
    def parse(
        cls,
        given: Mapping[str, str],
        *,
        currencies: Sequence[str],
        currency: str = USD,
        organisation: str | None = None,
    ) -> Query:
        """From `group_by`, `currency`, `from` and `to` as text, each of which may be missing. Raises QueryError."""
        by = tuple(name.strip() for name in given.get("group_by", "model").split(",") if name.strip())
        for name in by:
            if name not in GROUPS:
                raise QueryError(f"group_by has {name!r}; it can have {', '.join(GROUPS)}", "group_by")
        if len(set(by)) < len(by):
            raise QueryError(f"group_by names {max(by, key=by.count)!r} twice", "group_by")
        currency = given.get("currency", currency).upper()
        if currency not in currencies:
            raise QueryError(f"currency is {currency!r}; there are amounts in {', '.join(currencies)}", "currency")
        first, last = (_day(given.get(name), name) for name in ("from", "to"))
        if first and last and first > last:
            raise QueryError(f"from {first} to {last} there are no days", "to")
        return cls(by, currency, first, last, organisation)


def _day(text: str | None, name: str) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise QueryError(f"{name} is {text!r}; it must be a day in UTC, as 2026-11-21", name) from error


@dataclass(frozen=True)
class Report:
    """The groups a query found; their sum is exactly the total."""

    query: Query
    groups: Sequence[Group]

    @classmethod
    def of(cls, ledger: Ledger, query: Query) -> Report:
        """Raises LedgerError."""
        groups = ledger.groups(
            query.by,
            currency=query.currency,
            first_day=query.first_day,
            last_day=query.last_day,
            organisation=query.organisation,
        )
        return cls(query, groups)

    @property
    def total(self) -> Sums:
        return total(self.groups)

    def as_json(self) -> dict[str, object]:
        query = self.query
        return {
            "object": "usage",
            "from": query.first_day and query.first_day.isoformat(),
            "to": query.last_day and query.last_day.isoformat(),
            "organisation": query.organisation,
            "group_by": list(query.by),
            "currency": query.currency,
            "data": [{**group.by, **_sums(group.sums)} for group in self.groups],
            "total": _sums(self.total),
        }

    def as_csv(self) -> str:
        """A header and a row for each group. No row of totals: a spreadsheet would add it in."""
        names = [*self.query.by, "currency", *_sums(Sums())]
        text = io.StringIO()
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        for group in self.groups:
            writer.writerow({**group.by, "currency": self.query.currency, **_sums(group.sums)})
        return text.getvalue()


def _sums(sums: Sums) -> dict[str, object]:
    return {**asdict(sums), "amount": from_micro(sums.amount_micro)}
