"""Sizes as people write them."""

from __future__ import annotations

import re

LARGEST = 2**60


def parse_size(text: str) -> int:
    """'8GiB', '8G', '1.5GB', '8000000000' -> bytes. GB counts in thousands, GiB and G in 1024s. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,19}(?:\.\d{1,19})?)\s*([KMGT]?)(i?B?)", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is not a size; write 8GiB, 512MiB or a number of bytes")
    number, unit, suffix = match[1], match[2].upper(), match[3].lower()
    power = " KMGT".index(unit or " ")
    size = int(float(number) * (1000 if suffix == "b" else 1024) ** power)
    if size > LARGEST:
        raise ValueError(f"{text!r} is more than {LARGEST} bytes")
    return size
