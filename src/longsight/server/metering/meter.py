"""The meter that keeps a ledger: a price on each finished request, and its line on the disk before the answer ends."""

from __future__ import annotations

import json
import logging
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import asdict
from queue import Empty, Full, Queue
from threading import Event, Lock, Thread

from sqlalchemy import exc

from longsight.server.metering.errors import LedgerError
from longsight.server.metering.ledger import Ledger, Line
from longsight.server.metering.prices import USD, Charge, PriceTable
from longsight.server.usage import UsageRecord

log = logging.getLogger("longsight")
QUEUE_LINES, BATCH_LINES = 4096, 512
WAIT_SECONDS, RETRY_SECONDS = 10.0, 0.5
Waiting = tuple[Line, "Future[None]"]


class LedgerMeter:
    """A `usage.Meter`. Lines that arrive while one transaction is on its way to the disk share the next.

    `settle` returns when the line is committed, so a server that dies after an answer's end has lost nothing. While the
    database cannot be written, lines wait in memory and are committed once it can; `settle` gives up waiting after
    wait_seconds, and at once when others before it have, so that a lost database does not hold up answers. What isn't
    known to be committed is written to the log as JSON, and LedgerError is raised; the server delivers the answer all
    the same. currency: the one that costs are shown in.
    """

    def __init__(
        self, prices: PriceTable, ledger: Ledger, *, currency: str = USD, wait_seconds: float = WAIT_SECONDS
    ) -> None:
        self.prices, self.ledger, self.currency = prices, ledger, currency
        self._wait = wait_seconds
        self._queue: Queue[Waiting | None] = Queue(QUEUE_LINES)
        self._lock, self._closing = Lock(), Event()
        self._stalled = self._lost = False
        self._writer = Thread(target=self._write, name="longsight-ledger", daemon=True)
        self._writer.start()

    @property
    def waiting(self) -> int:
        """Lines that no transaction has taken yet."""
        return self._queue.qsize()

    def settle(self, record: UsageRecord) -> Charge:
        """Price the request and commit its line. On any thread but the event loop's. Raises PriceError, LedgerError."""
        try:
            charge = self.prices.charge(record, self.currency)
            committed = self._put(Line(record, charge, self.prices.content))
            committed.result(0 if self._stalled else self._wait)
        except Exception as error:
            log.error("not in the ledger yet: %s", json.dumps(asdict(record)))
            if isinstance(error, FutureTimeoutError):
                self._stalled = True
                raise LedgerError(f"the ledger does not answer; request {record.request_id} waits for it") from error
            raise
        return charge

    def close(self) -> None:
        """Commit what is waiting and stop. The ledger stays open: it is the caller's."""
        with self._lock:
            if not self._closing.is_set():
                self._closing.set()
                self._queue.put(None)
        self._writer.join()

    def _put(self, line: Line) -> Future[None]:
        committed: Future[None] = Future()
        with self._lock:
            if self._closing.is_set():
                raise LedgerError("the ledger's writer has been closed")
            try:
                self._queue.put_nowait((line, committed))
            except Full as error:
                raise LedgerError(f"{QUEUE_LINES} lines wait for the ledger already") from error
        return committed

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
            self._commit(batch)
            if last:
                return

    def _commit(self, batch: list[Waiting]) -> None:
        """Until it works, unless the lines themselves are at fault or nobody will be there to try again."""
        while not self._lost:
            try:
                self.ledger.add([line for line, _ in batch])
            except Exception as error:
                if not _may_pass(error):
                    self._commit_each(batch, error)
                    return
                if not self._stalled:
                    log.warning("%s; trying again until it works", error)
                self._stalled = True
                self._lost = self._closing.wait(RETRY_SECONDS)
            else:
                self._stalled = False
                for _, committed in batch:
                    committed.set_result(None)
                return
        for _, committed in batch:
            committed.set_exception(LedgerError("the ledger could not be written before the server ended"))

    def _commit_each(self, batch: list[Waiting], error: Exception) -> None:
        """The database works, so one line is at fault: the others need not suffer for it."""
        if len(batch) == 1:
            batch[0][1].set_exception(LedgerError(str(error)))
            return
        for one in batch:
            self._commit([one])


def _may_pass(error: Exception) -> bool:
    """Whether the database is at fault, rather than what was to be written."""
    cause = error.__cause__
    return isinstance(cause, exc.DBAPIError | exc.TimeoutError) and not isinstance(
        cause, exc.DataError | exc.IntegrityError
    )
