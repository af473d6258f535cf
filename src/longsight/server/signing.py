"""Texts that a client keeps for us: handed out signed, and taken back only as they were."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from longsight.ops import LongsightError

KEY_BYTES = 32
PREFIX = "ls1."


class SigningKeyError(LongsightError, ValueError):
    """The file of the signing key cannot be read, written or used."""


class Signer:
    """Makes opaque blobs of texts (base64, readable to who decodes it) and knows its own again. HMAC-SHA-256.

    key: at random by default, so what an earlier process signed is foreign to the next one.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = secrets.token_bytes(KEY_BYTES) if key is None else key

    @classmethod
    def from_file(cls, path: Path) -> Signer:
        """The key in a file, which is made, for its owner's eyes only, if it is missing. Raises SigningKeyError."""
        try:
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
            except FileExistsError:
                key = path.read_bytes()
            else:
                key = secrets.token_bytes(KEY_BYTES)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(key)
        except OSError as error:
            raise SigningKeyError(f"cannot use {path} as the signing key: {error}") from error
        if len(key) < KEY_BYTES:
            raise SigningKeyError(f"{path} holds {len(key)} bytes; a signing key has at least {KEY_BYTES}")
        return cls(key)

    def mark(self, text: str) -> str:
        """A signature that stands beside the text: 64 hexadecimal digits."""
        return self._mac(text.encode("utf-8", "surrogatepass")).hex()

    def seal(self, text: str) -> str:
        body = text.encode("utf-8", "surrogatepass")
        return PREFIX + base64.urlsafe_b64encode(self._mac(body) + body).decode()

    def unseal(self, blob: str) -> str | None:
        """The text of a blob of this key's; None for any other."""
        if not blob.startswith(PREFIX):
            return None
        try:
            raw = base64.b64decode(blob[len(PREFIX) :], altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        mac, body = raw[: hashlib.sha256().digest_size], raw[hashlib.sha256().digest_size :]
        return body.decode("utf-8", "surrogatepass") if hmac.compare_digest(mac, self._mac(body)) else None

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")
