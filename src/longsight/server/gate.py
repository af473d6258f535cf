"""Who may go in now. Rates and concurrency are checked after tokenizing and before the engine."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from longsight.server.errors import invalid, rate_limited
from longsight.server.identity import Caller
from longsight.server.limits import Limits
from longsight.server.window import SECOND, SLOTS, SlidingWindow

# The wait that is told where nobody knows how long the requests under way will take.
BUSY_SECONDS, LONG_BUSY_SECONDS = 5, 30
RPM, TPM, CONNECTIONS, SURGE = 1002, 1039, 1041, 2045  # the native API's codes for what ran out


class Ticket(Protocol):
    """A request under way."""

    def close(self, tokens: int) -> None:
        """It is over, and took so many tokens, read and written. Closing twice is harmless."""


class Gate(Protocol):
    """Belongs to the event loop's thread."""

    def admit(self, caller: Caller, tokens: int, longest: int | None = None) -> Ticket:
        """tokens: the most it may come to, input and output; longest: of one of its sequences, if it has several.

        Raises ApiError: 429 with the time to wait, or 400 for what could never be admitted.
        """

    def headers(self, caller: Caller) -> Mapping[str, str]:
        """x-ratelimit-* as they stand."""


@dataclass
class Account:
    """What one key, or one organisation, has used."""

    requests: SlidingWindow = field(default_factory=SlidingWindow)
    tokens: SlidingWindow = field(default_factory=SlidingWindow)
    running: int = 0
    seen: int = 0


@dataclass(frozen=True)
class Charge:
    """An account, and the limits that hold for it. None: no limit."""

    name: str
    account: Account
    rpm: int | None
    tpm: int | None
    concurrency: int | None


class RateGate:
    """Requests per minute, tokens per minute and concurrent requests of each key and organisation, and how many
    requests longer than the guaranteed context run at once.

    Tokens are reserved when a request is admitted, as many as it may come to; what it left unused is given back when it
    ends. Constant time per request; memory for the keys of the last minute. clock: monotonic nanoseconds.
    """

    def __init__(self, limits: Limits, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.limits, self._clock = limits, clock
        self._accounts: OrderedDict[tuple[str, str], Account] = OrderedDict()  # least recently seen first
        self._above_floor = 0

    def admit(self, caller: Caller, tokens: int, longest: int | None = None) -> Ticket:
        now, limits = self._clock(), self.limits
        charges = self._charges(caller, now)
        longest = tokens if longest is None else longest
        above_floor = longest > limits.guaranteed_context
        self._check_possible(charges, tokens, longest)
        refusals = [refusal for charge in charges for refusal in _refusals(charge, tokens, now)]
        if above_floor and self._above_floor >= limits.above_floor_concurrency:
            message = (
                f"requests of more than {limits.guaranteed_context} tokens run {limits.above_floor_concurrency} at a "
                f"time, and this one may come to {longest}"
            )
            refusals.append((LONG_BUSY_SECONDS * SECOND, message, SURGE))
        if refusals:
            wait, message, native = max(refusals)
            raise rate_limited(
                f"{message}; try again in {wait / SECOND:.1f} s",
                wait / SECOND,
                native=native,
                headers=self._headers(charges, now),
            )
        for charge in charges:
            charge.account.requests.add(1, now)
            charge.account.tokens.add(tokens, now)
            charge.account.running += 1
        self._above_floor += above_floor
        return _Ticket(self, [charge.account for charge in charges], tokens, now, above_floor)

    def headers(self, caller: Caller) -> Mapping[str, str]:
        now = self._clock()
        return self._headers(self._charges(caller, now), now)

    def close(self, accounts: Sequence[Account], reserved: int, used: int, admitted: int, above_floor: bool) -> None:
        """What a ticket's end does."""
        now = self._clock()
        for account in accounts:
            account.running -= 1
            account.seen = now
            if used < reserved:
                account.tokens.give_back(reserved - used, admitted, now)
            elif used > reserved:
                account.tokens.add(used - reserved, now)
        self._above_floor -= above_floor

    def _charges(self, caller: Caller, now: int) -> list[Charge]:
        limits = self.limits
        return [
            Charge(
                f"the API key {caller.key_id}",
                self._account("key", caller.key_id, now),
                caller.rpm or limits.rpm,
                caller.tpm or limits.tpm,
                caller.concurrency or limits.concurrency,
            ),
            Charge(
                f"the organisation {caller.organisation}",
                self._account("organisation", caller.organisation, now),
                limits.organisation_rpm,
                limits.organisation_tpm,
                limits.organisation_concurrency,
            ),
        ]

    def _account(self, kind: str, name: str, now: int) -> Account:
        account = self._accounts.setdefault((kind, name), Account())
        account.seen = now
        self._accounts.move_to_end((kind, name))
        # Each request looks at the two that nobody asked for longest, so idle ones go faster than new ones come.
        for _ in range(2):
            key, oldest = next(iter(self._accounts.items()))
            if oldest.running:
                self._accounts.move_to_end(key)
            elif now - oldest.seen > (SLOTS + 1) * SECOND:
                del self._accounts[key]
        return account

    def _check_possible(self, charges: Sequence[Charge], tokens: int, longest: int) -> None:
        """What waiting cannot help is no 429."""
        limits = self.limits
        most = limits.context_tokens if limits.above_floor_concurrency else limits.guaranteed_context
        if most is not None and longest > most:
            message = f"this request may come to {longest} tokens, prompt and answer; one may have {most} here"
            raise invalid(message, code="context_length_exceeded")
        for charge in charges:
            if charge.tpm is not None and tokens > charge.tpm:
                raise invalid(
                    f"this request may come to {tokens} tokens, prompt and answer; {charge.name} may use {charge.tpm} "
                    "a minute",
                    code="context_length_exceeded",
                )

    @staticmethod
    def _headers(charges: Sequence[Charge], now: int) -> dict[str, str]:
        """Of each kind, the limit that leaves least."""
        headers: dict[str, str] = {}
        requests = [(c.rpm, c.account.requests) for c in charges]
        tokens = [(c.tpm, c.account.tokens) for c in charges]
        for kind, pairs in (("requests", requests), ("tokens", tokens)):
            left = []
            for limit, window in pairs:
                if limit is not None:
                    reset = window.empty_in(now)  # first, as it forgets what is over a minute old
                    left.append((max(limit - window.total, 0), limit, reset))
            if left:
                remaining, limit, reset = min(left)
                headers[f"x-ratelimit-limit-{kind}"] = str(limit)
                headers[f"x-ratelimit-remaining-{kind}"] = str(remaining)
                headers[f"x-ratelimit-reset-{kind}"] = f"{reset / SECOND:.3f}s"
        return headers


class _Ticket:
    def __init__(
        self, gate: RateGate, accounts: Sequence[Account], tokens: int, admitted: int, above_floor: bool
    ) -> None:
        self._gate, self._accounts, self._tokens = gate, accounts, tokens
        self._admitted, self._above_floor, self._open = admitted, above_floor, True

    def close(self, tokens: int) -> None:
        if self._open:
            self._open = False
            self._gate.close(self._accounts, self._tokens, tokens, self._admitted, self._above_floor)


def _refusals(charge: Charge, tokens: int, now: int) -> list[tuple[int, str, int]]:
    """(nanoseconds to wait, why, native code) of each limit that is reached."""
    found: list[tuple[int, str, int]] = []
    if charge.concurrency is not None and charge.account.running >= charge.concurrency:
        message = f"{charge.name} has {charge.account.running} requests running of {charge.concurrency}"
        found.append((BUSY_SECONDS * SECOND, message, CONNECTIONS))
    if charge.rpm is not None and (wait := charge.account.requests.wait(1, charge.rpm, now)):
        found.append((wait, f"{charge.name} has used its {charge.rpm} requests a minute", RPM))
    if charge.tpm is not None and (wait := charge.account.tokens.wait(tokens, charge.tpm, now)):
        message = f"{charge.name} has used {charge.account.tokens.total} of its {charge.tpm} tokens a minute"
        found.append((wait, f"{message}, and this request may come to {tokens}", TPM))
    return found
