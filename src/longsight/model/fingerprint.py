"""What a checkpoint is, in 32 bytes: two that differ in configuration or weights should not share a cache."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

SAMPLES, SAMPLE_BYTES = 256, 4096
HEADER_BYTES = 8  # a safetensors file begins with the length of its header, little-endian


def fingerprint(directory: Path) -> bytes:
    """sha256 of config.json, of every safetensors file's header and of samples spread evenly over its weights.

    Whole files would take minutes to read at hundreds of gigabytes. Fine-tuning moves nearly every weight, so samples
    of a megabyte per file tell checkpoints apart; a file edited in a few places by hand may pass for the old one.
    """
    digest = sha256()
    for path in (directory / "config.json", *sorted(directory.glob("*.safetensors"))):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if path.suffix == ".json" or size <= SAMPLES * SAMPLE_BYTES:
                digest.update(file.read())
                continue
            length = int.from_bytes(file.read(HEADER_BYTES), "little")
            digest.update(file.read(min(length, size)))
            for i in range(SAMPLES):
                file.seek(HEADER_BYTES + length + (size - HEADER_BYTES - length - SAMPLE_BYTES) * i // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.digest()
