"""HTTPS: the certificate and key that the server shows, checked before anything else starts."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longsight.ops import LongsightError


class TlsError(LongsightError, ValueError):
    """The certificate or key cannot be used; the message names the file, its option and what to do."""


@dataclass(frozen=True)
class Tls:
    """certfile: PEM, the server's certificate and then its chain. keyfile: PEM; None if the key is in certfile.
    password: of the key, if it is encrypted."""

    certfile: Path
    keyfile: Path | None = None
    password: str | None = None

    def check(self) -> None:
        """Load both as the server will. Raises TlsError."""
        for option, path in (("--ssl-certfile", self.certfile), ("--ssl-keyfile", self.keyfile)):
            if path is not None:
                _check_readable(option, path)

        asked = False

        def password() -> str:
            nonlocal asked
            asked = True
            # OpenSSL would ask for it on the terminal, which a service does not have.
            if self.password is None:
                raise TlsError(f"{key} is encrypted; give its password as --ssl-keyfile-password")
            return self.password

        key = self.keyfile or self.certfile
        files = f"--ssl-certfile {self.certfile}" + (f" and --ssl-keyfile {key}" if self.keyfile else "")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certfile, self.keyfile, password)
        except ssl.SSLError as error:
            raise TlsError(f"{files} cannot be used: {_explain(error, asked)}") from error

    def options(self) -> dict[str, Any]:
        """As uvicorn calls them."""
        return {
            "ssl_certfile": str(self.certfile),
            "ssl_keyfile": str(self.keyfile) if self.keyfile else None,
            "ssl_keyfile_password": self.password,
        }


def _check_readable(option: str, path: Path) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise TlsError(f"{option} {path} cannot be read: {error.strerror}; give a file in PEM format") from error


def _explain(error: ssl.SSLError, encrypted: bool) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key does not belong to the certificate"
    if encrypted:  # OpenSSL's own reason differs from version to version
        return "the password of the key is wrong"
    if error.reason in (None, "NO_START_LINE", "PEM_LIB"):
        return "they must hold a certificate and its private key in PEM format"
    return error.reason.replace("_", " ").lower()
