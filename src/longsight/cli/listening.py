"""Where `longsight serve` listens and how clients reach it: address, TLS, a proxy in front."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longsight.cli.numbers import port
from longsight.cli.paths import InputFile

if TYPE_CHECKING:
    import socket

    from longsight.server.tls import Tls

EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # what is listened on: where this machine finds it
PASSWORD = "LONGSIGHT_SSL_KEYFILE_PASSWORD"


def host_name(text: str) -> str:
    """A host name, an IPv4 or an IPv6 address, the last with or without brackets."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not re.fullmatch(r"[A-Za-z0-9_.-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%\w+)?", bare):
        wanted = "give a name or an address alone, as 127.0.0.1 or ::1"
        raise argparse.ArgumentTypeError(f"{text!r} is not a host; {wanted}, without http:// and without a port")
    return bare


def add_listen_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("address, TLS and proxy")
    group.add_argument(
        "--host", type=host_name, default="127.0.0.1", help="address to listen on (default 127.0.0.1; 0.0.0.0 = all)"
    )
    group.add_argument("--port", type=port, default=8000, help="port to listen on (default 8000; 0 = any free one)")
    group.add_argument(
        "--root-path",
        default="",
        metavar="PATH",
        help="the path that a reverse proxy serves this server under, as /longsight; whether or not the proxy removes "
        "it before it passes requests on",
    )
    group.add_argument(
        "--forwarded-allow-ips",
        default=os.environ.get("FORWARDED_ALLOW_IPS"),
        metavar="LIST",
        help="proxies whose X-Forwarded-For, X-Forwarded-Proto or Forwarded headers are believed: addresses and "
        "networks with commas between, or * for every peer (default: FORWARDED_ALLOW_IPS, else this machine)",
    )
    group.add_argument(
        "--ssl-certfile",
        type=InputFile("a PEM file"),
        metavar="FILE",
        help="serve HTTPS with this PEM certificate chain",
    )
    group.add_argument(
        "--ssl-keyfile",
        type=InputFile("a PEM file"),
        metavar="FILE",
        help="its private key, if --ssl-certfile does not hold it",
    )
    group.add_argument(
        "--ssl-keyfile-password",
        default=os.environ.get(PASSWORD),
        metavar="TEXT",
        help=f"of an encrypted key; better in {PASSWORD}, as others see arguments",
    )


def tls_of(args: argparse.Namespace) -> Tls | None:
    """The certificate and key that the flags name, checked; None for plain HTTP. Raises TlsError."""
    from longsight.server.tls import Tls, TlsError

    if args.ssl_certfile is None:
        if args.ssl_keyfile is not None:
            raise TlsError("--ssl-keyfile needs --ssl-certfile, the certificate that the key belongs to")
        return None
    tls = Tls(args.ssl_certfile, args.ssl_keyfile, args.ssl_keyfile_password)
    tls.check()
    return tls


@dataclass(frozen=True)
class Urls:
    """The server's addresses, as this machine reaches them. root ends without a slash."""

    root: str
    every_address: bool = False

    @classmethod
    def of(cls, listener: socket.socket, *, tls: bool, root_path: str) -> Urls:
        listened, number = listener.getsockname()[:2]
        host = EVERY_ADDRESS.get(listened, listened)
        scheme = "https" if tls else "http"
        root = f"{scheme}://{f'[{host}]' if ':' in host else host}:{number}{root_path}"
        return cls(root, listened in EVERY_ADDRESS)

    @property
    def page(self) -> str:
        return f"{self.root}/"

    @property
    def openai(self) -> str:
        return f"{self.root}/v1"

    @property
    def anthropic(self) -> str:
        return f"{self.root}/anthropic"
