"""`longsight usage`: what a ledger says was used, and what it came to."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from longsight.cli.paths import LEDGER_SCHEMES, Database

if TYPE_CHECKING:
    from rich.table import Table

    from longsight.server.metering.report import Report

EPILOG = """\
examples:
  longsight usage --ledger usage.db                           # all there is, by model
  longsight usage --ledger usage.db --by organisation,day --from 2026-11-01 --to 2026-11-30 --currency DZD
  longsight usage --ledger postgresql://billing@db/usage --by key --csv > usage.csv

The ledger is the one that `longsight serve --ledger` writes; reading it does not disturb the server.
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "usage",
        help="what a ledger says was used, and what it came to",
        description="Sum up a ledger of finished requests.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--ledger",
        type=Database(LEDGER_SCHEMES, existing=True),
        required=True,
        metavar="FILE|URL",
        help="an SQLite file or a postgresql:// URL",
    )
    parser.add_argument(
        "--by",
        default="model",
        metavar="NAME,...",
        help="organisation, key, model, day, tier, service_tier, status; default: model",
    )
    parser.add_argument("--from", dest="first_day", metavar="DAY", help="the first day, UTC, as 2026-11-01")
    parser.add_argument("--to", dest="last_day", metavar="DAY", help="the last day, UTC, itself included")
    parser.add_argument("--organisation", metavar="NAME", help="of this organisation only")
    parser.add_argument("--currency", default="USD", metavar="CODE", help="amounts in this currency (default USD)")
    parser.add_argument("--csv", action="store_true", help="comma-separated values instead of a table")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from longsight.server.metering.ledger import Ledger
    from longsight.server.metering.report import Query, Report

    given = {"group_by": args.by, "currency": args.currency, "from": args.first_day, "to": args.last_day}
    ledger = Ledger.open(args.ledger, read_only=True)
    try:
        query = Query.parse(
            {name: value for name, value in given.items() if value is not None},
            currencies=ledger.currencies(),
            organisation=args.organisation,
        )
        report = Report.of(ledger, query)
    finally:
        ledger.close()
    if args.csv:
        sys.stdout.write(report.as_csv())
    else:
        Console().print(_table(report))
    return 0


def _table(report: Report) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from longsight.server.metering.ledger import Sums
    from longsight.server.metering.money import from_micro

    table = Table(show_footer=True)
    total = report.total

    def cells(sums: Sums) -> list[str]:
        counts = (sums.requests, sums.prompt_tokens, sums.cached_tokens, sums.completion_tokens)
        return [*(f"{count:,}" for count in counts), from_micro(sums.amount_micro)]

    for position, name in enumerate(report.query.by):
        table.add_column(name, footer="" if position else "total", overflow="fold")
    headings = ("requests", "input\ntokens", "of them\ncached", "output\ntokens", report.query.currency)
    for heading, footer in zip(headings, cells(total), strict=True):
        table.add_column(heading, footer=footer, justify="right", no_wrap=True)
    for group in report.groups:
        table.add_row(*(escape(value) for value in group.by.values()), *cells(group.sums))
    if total.unconverted:
        table.caption = f"{total.unconverted:,} requests have no amount in {report.query.currency}: no rate that day"
    return table
