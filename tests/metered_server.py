"""A process that serves the stand-in model with a ledger: `metered_server.py LEDGER`. Prints its URL."""

from __future__ import annotations

import sys
from threading import Event

from live_server import live_server
from longsight.server.metering.ledger import Ledger
from longsight.server.metering.meter import LedgerMeter
from longsight.server.metering.prices import DEFAULT_PRICES

if __name__ == "__main__":
    with live_server(meter=LedgerMeter(DEFAULT_PRICES, Ledger.open(sys.argv[1]))) as server:
        print(server.url, flush=True)
        Event().wait()
