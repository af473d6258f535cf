"""Types of options that are numbers, sizes, times, ports and URLs: what is wrong is told with what is accepted."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from urllib.parse import urlsplit

from longsight.sizes import parse_size

LARGEST = 2**53  # what numbers in JSON and in tables can hold exactly
MAX_THREADS = 1024


def whole(least: int, most: int = LARGEST) -> Callable[[str], int]:
    """The type of a whole number from `least` to `most`; underscores and commas may separate digits."""

    def parse(text: str) -> int:
        digits = text.replace(",", "").replace("_", "").removeprefix("-")
        number = int(digits) if digits.isdecimal() and len(digits) <= len(str(LARGEST)) + 1 else None
        if number is not None and text.startswith("-"):
            number = -number
        if number is None or not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a {_range(least, most)}")
        return number

    return parse


def _range(least: int, most: int) -> str:
    kind = {0: "whole number, 0 or more", 1: "positive whole number"}.get(least)
    if kind is None or most != LARGEST:
        kind = f"whole number from {least:,} to {most:,}"
    return kind


positive = whole(1)
count = whole(0)
seed = whole(-LARGEST)
threads = whole(1, MAX_THREADS)


def port(text: str) -> int:
    """A TCP port; 0 asks the system for a free one."""
    if not text.isdecimal() or len(text) > 5 or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; ports run from 0 to 65535")
    return int(text)


def number(text: str) -> float:
    """Any number, infinity and NaN included: for options whose range is checked where they are used."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def seconds(text: str) -> float:
    """A time of 0 seconds or more."""
    value = _float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more")
    return value


def rate(text: str) -> float:
    """A learning rate: a positive number."""
    value = _float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def byte_size(text: str) -> int:
    """A size as parse_size reads it."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def http_url(text: str) -> str:
    """An http:// or https:// URL with a host."""
    example = "write http://HOST:PORT or https://HOST, as http://127.0.0.1:4318"
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port  # asking for the port checks it
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL ({error}); {example}") from None
    if parts.scheme not in ("http", "https"):
        raise argparse.ArgumentTypeError(f"{text!r} does not begin with http:// or https://; {example}")
    if not host or any(c.isspace() or not c.isprintable() for c in text):
        raise argparse.ArgumentTypeError(f"{text!r} names no host; {example}")
    return text
