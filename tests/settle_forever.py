"""A process that settles random requests from several threads: `settle_forever.py LEDGER PREFIX COUNT`.

Prints each request's id once `settle` has returned. COUNT 0: until it is killed.
"""

from __future__ import annotations

import itertools
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from longsight.server.metering.ledger import Ledger
from longsight.server.metering.meter import LedgerMeter
from longsight.server.metering.prices import DEFAULT_PRICES
from usage_records import random_record

THREADS = 4


def main(where: str, prefix: str, count: int) -> None:
    print("started", flush=True)
    sys.stdin.readline()  # so that several processes open the ledger at the same moment
    ledger = Ledger.open(where)
    meter = LedgerMeter(DEFAULT_PRICES, ledger)

    def settle(thread: int) -> None:
        rng = random.Random(thread)
        numbers = range(thread, count, THREADS) if count else itertools.count(thread, THREADS)
        for number in numbers:
            meter.settle(replace(random_record(rng, number), request_id=f"{prefix}_{number}"))
            sys.stdout.write(f"{prefix}_{number}\n")
            sys.stdout.flush()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(settle, range(THREADS)))
    meter.close()
    ledger.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
