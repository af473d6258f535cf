"""The ledger's tables. Lines are only ever added: the database itself refuses to change or delete one."""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    Date,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    event,
)
from sqlalchemy.schema import ExecutableDDLElement

SCHEMA_VERSION = 1
metadata = MetaData()

meta = Table("ledger_meta", metadata, Column("name", String, primary_key=True), Column("value", String, nullable=False))

# What a price version said, so that any line can be computed again.
prices = Table(
    "ledger_prices",
    metadata,
    Column("price_version", String, primary_key=True),
    Column("content", Text, nullable=False),
)

# One line for each finished request. day: of `started`, in UTC. Tokens as in UsageRecord; money in micro-USD,
# list_usd_micro before the discount (basis points), usd_micro what is charged.
lines = Table(
    "ledger_lines",
    metadata,
    Column("request_id", String, primary_key=True),
    Column("started", Double, nullable=False),
    Column("day", Date, nullable=False),
    Column("organisation", String, nullable=False),
    Column("caller", String, nullable=False),
    Column("dialect", String, nullable=False),
    Column("endpoint", String, nullable=False),
    Column("model", String, nullable=False),
    Column("service_tier", String, nullable=False),
    Column("status", String, nullable=False),
    Column("finish_reason", String),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("ttft_s", Double),
    Column("duration_s", Double, nullable=False),
    Column("tier", String, nullable=False),
    Column("price_version", String, ForeignKey(prices.c.price_version), nullable=False),
    Column("list_usd_micro", BigInteger, nullable=False),
    Column("discount", Integer, nullable=False),
    Column("usd_micro", BigInteger, nullable=False),
    Index("ledger_lines_by_organisation_and_day", "organisation", "day"),
)

# The same charge in other currencies: rounded from the exact amount, not from the micro-USD.
amounts = Table(
    "ledger_amounts",
    metadata,
    Column("request_id", String, ForeignKey(lines.c.request_id), primary_key=True),
    Column("currency", String, primary_key=True),
    Column("micro", BigInteger, nullable=False),
)

_SQLITE = """\
CREATE TRIGGER %(table)s_no_{verb} BEFORE {verb} ON %(table)s
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"""
_POSTGRES = """\
CREATE FUNCTION %(table)s_append_only() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$;
CREATE TRIGGER %(table)s_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %(table)s
FOR EACH STATEMENT EXECUTE FUNCTION %(table)s_append_only()"""


def _ddl(statement: str, dialect: str) -> ExecutableDDLElement:
    ddl: ExecutableDDLElement = DDL(statement)  # type: ignore[no-untyped-call]
    return ddl.execute_if(dialect=dialect)


for _table in (prices, lines, amounts):
    for _verb in ("UPDATE", "DELETE"):
        event.listen(_table, "after_create", _ddl(_SQLITE.format(verb=_verb), "sqlite"))
    event.listen(_table, "after_create", _ddl(_POSTGRES, "postgresql"))
