"""The ledger: one line for each finished request, added once and never changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import Engine, Table, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from longsight.server.metering.database import open_database, reason
from longsight.server.metering.errors import LedgerError
from longsight.server.metering.prices import USD, Charge, day_of
from longsight.server.metering.tables import amounts, lines, prices
from longsight.server.usage import UsageRecord

GROUPS = ("organisation", "key", "model", "day", "tier", "service_tier", "status")
COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")


@dataclass(frozen=True)
class Line:
    """A finished request and what it comes to. prices: the content of the price table of charge.price_version."""

    record: UsageRecord
    charge: Charge
    prices: str


@dataclass(frozen=True)
class Sums:
    """What some lines add up to, exactly. unconverted: lines that have no amount in the currency asked for, because it
    had no rate on their day; they are in every other figure."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    amount_micro: int = 0
    unconverted: int = 0

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Group:
    """by: the value of each thing grouped by, as text."""

    by: dict[str, str]
    sums: Sums


class Ledger:
    """Many threads and processes may use one ledger at once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._kept_versions: set[str] = set()
        self._insert: Callable[[Table], Any] = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert

    @classmethod
    def open(cls, where: str, *, read_only: bool = False) -> Ledger:
        """where: a file or a URL, as for `open_database`. Raises LedgerError."""
        return cls(open_database(where, read_only=read_only))

    def close(self) -> None:
        self._engine.dispose()

    def add(self, new: Sequence[Line]) -> None:
        """Commit the lines in one transaction, all or none; they are safe when this returns.

        A request id that is in the ledger already stays as it is: settling twice charges once. Raises LedgerError.
        """
        if not new:
            return
        with self._errors("cannot be written"), self._engine.begin() as connection:
            versions = {line.charge.price_version: line.prices for line in new}
            if not versions.keys() <= self._kept_versions:
                contents = [{"price_version": version, "content": versions[version]} for version in sorted(versions)]
                connection.execute(self._insert(prices).on_conflict_do_nothing(), contents)
            unknown = self._insert(lines).on_conflict_do_nothing().returning(lines.c.request_id)
            first = {line.record.request_id: line for line in reversed(new)}
            # In one order everywhere, so that two writers with the same ids wait for each other at most once.
            added = connection.execute(unknown, [_row(first[i]) for i in sorted(first)]).scalars().all()
            converted = [
                {"request_id": request_id, "currency": currency, "micro": micro}
                for request_id in added
                for currency, micro in first[request_id].charge.amounts.items()
                if currency != USD
            ]
            if converted:
                connection.execute(amounts.insert(), converted)
        self._kept_versions |= versions.keys()

    def groups(
        self,
        by: Sequence[str] = (),
        *,
        currency: str = USD,
        first_day: date | None = None,
        last_day: date | None = None,
        organisation: str | None = None,
    ) -> list[Group]:
        """Sums of the lines from one UTC day to another, both included, in the order of what they are grouped by.

        by: any of GROUPS; none: one group of everything. Raises LedgerError.
        """
        columns = [lines.c["caller" if name == "key" else name] for name in by]
        source: Any = lines
        amount: Any = lines.c.usd_micro
        if currency != USD:
            source = lines.outerjoin(
                amounts, (amounts.c.request_id == lines.c.request_id) & (amounts.c.currency == currency)
            )
            amount = amounts.c.micro
        query = select(
            *columns,
            func.count(),
            *(func.sum(lines.c[name]) for name in COUNTS),
            func.coalesce(func.sum(amount), 0),
            func.count() - func.count(amount),
        ).select_from(source)
        if first_day is not None:
            query = query.where(lines.c.day >= first_day)
        if last_day is not None:
            query = query.where(lines.c.day <= last_day)
        if organisation is not None:
            query = query.where(lines.c.organisation == organisation)
        query = query.group_by(*columns).order_by(*columns)
        with self._errors("cannot be read"), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        found = [
            Group(dict(zip(by, map(str, row[: len(by)]), strict=True)), Sums(*map(int, row[len(by) :])))
            for row in rows
            if row[len(by)]  # a sum over no lines is a row too, of NULLs
        ]
        return found if by else found or [Group({}, Sums())]

    def currencies(self) -> list[str]:
        """Those that some line has an amount in. Raises LedgerError."""
        with self._errors("cannot be read"), self._engine.connect() as connection:
            return sorted({USD, *connection.execute(select(amounts.c.currency).distinct()).scalars()})

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise LedgerError(f"the ledger {what}: {reason(error)}") from error


def total(groups: Sequence[Group]) -> Sums:
    return sum((group.sums for group in groups), Sums())


def _row(line: Line) -> dict[str, Any]:
    charge = line.charge
    return {
        **vars(line.record),
        "day": day_of(line.record.started),
        "tier": charge.tier,
        "price_version": charge.price_version,
        "list_usd_micro": charge.list_usd_micro,
        "discount": charge.discount,
        "usd_micro": charge.usd_micro,
    }
