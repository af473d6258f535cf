"""Options of `serve` that keep a ledger, and the meter they describe."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from longsight.cli.paths import LEDGER_SCHEMES, Database, InputFile

if TYPE_CHECKING:
    from longsight.server.metering.meter import LedgerMeter


def add_metering_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ledger",
        type=Database(LEDGER_SCHEMES),
        metavar="FILE|URL",
        help="keep a line for each request in this SQLite file, or in PostgreSQL (postgresql://USER@HOST/NAME); "
        "default: none is kept",
    )
    parser.add_argument(
        "--prices",
        type=InputFile("a TOML or JSON file"),
        metavar="FILE",
        help="what models cost, in TOML or per-token JSON; default: MiniMax's published prices, other models are free",
    )
    parser.add_argument("--currency", metavar="CODE", help="the currency that costs are shown in (default USD)")


@contextmanager
def open_meter(args: argparse.Namespace) -> Iterator[LedgerMeter | None]:
    """The meter that the options ask for; closed, with everything committed, in the end."""
    from longsight.server.metering.errors import LedgerError, PriceError

    if args.ledger is None:
        for option in ("prices", "currency"):
            if getattr(args, option) is not None:
                raise LedgerError(f"--{option} is of use only with --ledger, which is missing")
        yield None
        return

    from longsight.server.metering.ledger import Ledger
    from longsight.server.metering.meter import LedgerMeter
    from longsight.server.metering.price_file import load_prices
    from longsight.server.metering.prices import DEFAULT_PRICES

    prices = load_prices(args.prices) if args.prices is not None else DEFAULT_PRICES
    currency = (args.currency or "USD").upper()
    if currency not in prices.known_currencies:
        raise PriceError(f"--currency is {currency}; the prices have {', '.join(prices.known_currencies)}")
    with closing(Ledger.open(args.ledger)) as ledger, closing(LedgerMeter(prices, ledger, currency=currency)) as meter:
        yield meter
