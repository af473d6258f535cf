"""Money is integers: micro-units, a millionth of a currency's unit. Nothing here is a float."""

from __future__ import annotations

from decimal import Decimal

from longsight.server.metering.errors import PriceError

MICRO = 1_000_000


def half_even(numerator: int, denominator: int) -> int:
    """numerator / denominator (>= 0, > 0) to the nearest integer, halves to the even one."""
    whole, rest = divmod(numerator, denominator)
    return whole + (2 * rest > denominator or (2 * rest == denominator and whole % 2 == 1))


def to_micro(amount: Decimal | int, what: str) -> int:
    """'0.30' -> 300000. Raises PriceError for negative amounts and for more than six decimals: nothing is rounded."""
    micro = Decimal(amount) * MICRO
    if not micro.is_finite() or micro < 0 or micro != micro.to_integral_value():
        raise PriceError(f"{what} is {amount}; it must be 0 or more, with at most six decimals")
    return int(micro)


def from_micro(micro: int) -> str:
    """1234567 -> '1.234567': always six decimals, so that columns line up and nothing is lost."""
    sign = "-" if micro < 0 else ""
    return f"{sign}{abs(micro) // MICRO}.{abs(micro) % MICRO:06d}"
