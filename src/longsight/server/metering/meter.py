"""The meter that keeps a ledger: a price on each finished request, and its line on the disk before the answer ends."""

from __future__ import annotations

import json
import logging
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import asdict
from queue import Empty, Full, Queue
from threading import Lock, Thread

from sqlalchemy.exc import OperationalError

from longsight.server.metering.errors import LedgerError
from longsight.server.metering.ledger import Ledger, Line
from longsight.server.metering.prices import USD, Charge, PriceTable
from longsight.server.usage import UsageRecord

log = logging.getLogger("longsight")
QUEUE_LINES, BATCH_LINES, WAIT_SECONDS = 4096, 512, 30.0


class LedgerMeter:
    """A `usage.Meter`. Lines that arrive while one transaction is on its way to the disk share the next.

    `settle` returns when the line is committed, so a server that dies after an answer's end has lost nothing. Where it
    cannot be committed the record is written to the log as JSON, to be entered by hand, and LedgerError is raised; the
    server then still delivers the answer. currency: the one that costs are shown in.
    """

    def __init__(
        self, prices: PriceTable, ledger: Ledger, *, currency: str = USD, wait_seconds: float = WAIT_SECONDS
    ) -> None:
        self.prices, self.ledger, self.currency = prices, ledger, currency
        self._wait = wait_seconds
        self._queue: Queue[tuple[Line, Future[None]] | None] = Queue(QUEUE_LINES)
        self._lock, self._closed = Lock(), False
        self._writer = Thread(target=self._write, name="longsight-ledger", daemon=True)
        self._writer.start()

    @property
    def waiting(self) -> int:
        """Lines that no transaction has taken yet."""
        return self._queue.qsize()

    def settle(self, record: UsageRecord) -> Charge:
        """Price the request and commit its line. On any thread but the event loop's. Raises PriceError, LedgerError."""
        committed: Future[None] = Future()
        try:
            charge = self.prices.charge(record, self.currency)
            self._put(Line(record, charge, self.prices.content), committed)
            committed.result(self._wait)
            return charge
        except (Full, FutureTimeoutError, CancelledError) as error:
            # One that the writer has taken already may still be committed: entering it again by hand is harmless.
            committed.cancel()
            self._log(record)
            raise LedgerError(
                f"the usage of request {record.request_id} was not committed within {self._wait:g} s"
            ) from error
        except Exception:
            self._log(record)
            raise

    def close(self) -> None:
        """Commit what is waiting and stop. The ledger stays open: it is the caller's."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._writer.join()

    def _put(self, line: Line, committed: Future[None]) -> None:
        with self._lock:
            if self._closed:
                raise LedgerError("the ledger's writer has been closed")
            self._queue.put((line, committed), timeout=self._wait)

    def _log(self, record: UsageRecord) -> None:
        log.error("not in the ledger: %s", json.dumps(asdict(record)))

    def _write(self) -> None:
        while (item := self._queue.get()) is not None:
            batch, last = [item], False
            while len(batch) < BATCH_LINES and not last:
                try:
                    item = self._queue.get_nowait()
                except Empty:
                    break
                if item is None:
                    last = True
                else:
                    batch.append(item)
            self._commit([(line, future) for line, future in batch if future.set_running_or_notify_cancel()])
            if last:
                return

    def _commit(self, batch: list[tuple[Line, Future[None]]]) -> None:
        try:
            self.ledger.add([line for line, _ in batch])
        except Exception as error:
            if len(batch) > 1 and not isinstance(error.__cause__, OperationalError):
                # The database works, so one line is at fault: the others need not suffer for it.
                for one in batch:
                    self._commit([one])
                return
            for _, future in batch:
                future.set_exception(LedgerError(str(error)))
        else:
            for _, future in batch:
                future.set_result(None)
