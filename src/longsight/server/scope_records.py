"""What the microscope remembers of a run for a while: its tokens, so that the texts of blocks can be asked for."""

from __future__ import annotations

import secrets
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longsight.server.errors import ApiError
from longsight.server.identity import Caller


@dataclass(frozen=True)
class Record:
    """prompt and output are the request's own: output grows while the request runs."""

    id: str
    owner: Caller
    prompt: array[int]
    output: Sequence[int]
    made: float

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.output)

    def tokens(self, start: int, stop: int) -> list[int]:
        """Tokens [start, stop) of prompt + output."""
        n = len(self.prompt)
        return [*self.prompt[start:stop], *self.output[max(start - n, 0) : max(stop - n, 0)]]


class Records:
    """The latest runs, oldest first. Bounded three ways: how many, how many prompt tokens in all (4 bytes each), how
    many seconds. The newest one stays whatever its size."""

    def __init__(
        self,
        *,
        count: int = 64,
        tokens: int = 16 * 2**20,
        seconds: float = 15 * 60,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.count, self.tokens, self.seconds, self._clock = count, tokens, seconds, clock
        self._records: OrderedDict[str, Record] = OrderedDict()

    def __len__(self) -> int:
        self._forget()
        return len(self._records)

    def add(self, owner: Caller, prompt: array[int], output: Sequence[int]) -> Record:
        record = Record(f"scope_{secrets.token_hex(12)}", owner, prompt, output, self._clock())
        self._records[record.id] = record
        self._forget()
        return record

    def get(self, id: str, caller: Caller) -> Record:
        """Raises ApiError 404 for a run that is unknown, forgotten or of another organisation: all three look alike."""
        self._forget()
        record = self._records.get(id)
        if record is None or record.owner.organisation != caller.organisation:
            raise ApiError(
                404,
                f"there is no microscope run {id[:80]!r}; runs are kept for {self.seconds / 60:g} minutes, "
                f"the latest {self.count} at most",
                type="invalid_request_error",
                code="run_not_found",
                param="id",
            )
        return record

    def _forget(self) -> None:
        oldest_allowed = self._clock() - self.seconds
        total = sum(len(record.prompt) for record in self._records.values())
        while self._records:
            oldest = next(iter(self._records.values()))
            too_many = len(self._records) > self.count or (total > self.tokens and len(self._records) > 1)
            if not too_many and oldest.made >= oldest_allowed:
                return
            total -= len(oldest.prompt)
            del self._records[oldest.id]
