"""What stands between a client and the server: proxies that speak for clients, and the path they serve us under."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longsight.ops import LongsightError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LOOPBACK = "127.0.0.0/8,::1"
EVERYBODY = "*"
_ELEMENT = re.compile(r'(?:[^,"]|"[^"]*")+')  # of a list whose quoted strings may hold commas
_PAIR = re.compile(r'(\w+)\s*=\s*(?:"([^"]*)"|([^;\s]*))')


class ProxyError(LongsightError, ValueError):
    """The trusted proxies or the root path cannot be read; the message names the value and what is accepted."""


def check_root_path(text: str) -> str:
    """The path under which a proxy serves us: "" or "/name". Raises ProxyError."""
    good = re.fullmatch(r"(?:/[A-Za-z0-9._~-]+)*", text)
    if not good or {".", ".."} & set(text.split("/")):
        raise ProxyError(
            f"--root-path is {text!r}; it must begin with / and end without one, as /longsight, "
            "and have only letters, digits and -._~ between slashes"
        )
    return text


def root_path(scope: Scope) -> str:
    """The path that all of the server's own are under; "" for none."""
    return str(scope.get("app_root_path", scope.get("root_path", "")))


def route_path(scope: Scope) -> str:
    """The path of a request without the root path: what routes, scopes of keys and error shapes go by."""
    root, path = root_path(scope), str(scope["path"])
    return path[len(root) :] if _is_below(path, root) else path


@dataclass(frozen=True)
class TrustedProxies:
    """Peers whose word on the client's address and scheme is taken. everybody: whoever connects."""

    networks: tuple[Network, ...] = ()
    everybody: bool = False

    @classmethod
    def parse(cls, text: str) -> TrustedProxies:
        """Addresses and networks with commas between; * for every peer; "" for none. Raises ProxyError."""
        if text.strip() == EVERYBODY:
            return cls(everybody=True)
        networks = []
        for item in filter(None, map(str.strip, text.split(","))):
            try:
                networks.append(ipaddress.ip_network(item))
            except ValueError as error:
                raise ProxyError(
                    f"{item!r} in --forwarded-allow-ips is not a trusted proxy: {error}; write addresses and networks "
                    "with commas between, as 127.0.0.1,10.0.0.0/8, or * for every peer"
                ) from None
        return cls(tuple(networks))

    def trusts(self, address: Address) -> bool:
        return self.everybody or any(address in network for network in self.networks)

    def client(self, peer: Address, hops: Sequence[str]) -> Address:
        """Whom a trusted peer speaks for. hops: what the header lists, the client's own word first.

        Each proxy appends the address that connected to it, so the list is read from its end, and no further than the
        first address that is not a proxy of ours: what stands before that anybody may have made up. If every peer is
        trusted, only what the peer itself appended counts.
        """
        found = peer
        for hop in reversed(hops):
            address = read_address(hop)
            if address is None:
                break
            found = address
            if self.everybody or not self.trusts(address):
                break
        return found


class Proxied:
    """ASGI middleware, the outermost: puts the client's address and scheme into the scope if a trusted proxy tells
    them, and the root path before paths that a proxy has taken it from.

    Redirects have no host: behind a proxy, the one that a client knows is not always the one that we are asked by.
    """

    def __init__(self, app: ASGIApp, trusted: TrustedProxies, root_path: str = "") -> None:
        self.app, self._trusted, self._root_path = app, trusted, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self._add_root_path(scope)
        self._believe(scope)

        async def send_local(message: Message) -> None:
            if message["type"] == "http.response.start" and 300 <= message["status"] < 400:
                headers = MutableHeaders(scope=message)
                if "location" in headers:
                    headers["location"] = _local(headers["location"])
            await send(message)

        await self.app(scope, receive, send_local)

    def _add_root_path(self, scope: MutableMapping[str, Any]) -> None:
        root = self._root_path
        if not root:
            return
        if not _is_below(scope["path"], root):
            scope["path"] = root + scope["path"]
            scope["raw_path"] = root.encode() + scope.get("raw_path", b"")
        scope["root_path"] = root

    def _believe(self, scope: MutableMapping[str, Any]) -> None:
        peer = read_address((scope.get("client") or ("",))[0])
        if peer is None or not self._trusted.trusts(peer):
            return
        hops, scheme = _forwarded(Headers(scope=scope))
        if hops:
            scope["client"] = (str(self._trusted.client(peer, hops)), 0)
        if scheme in ("http", "https"):
            scope["scheme"] = scheme


def read_address(text: str) -> Address | None:
    """An address as proxies write it, with or without a port, brackets and quotes; None if it is not one."""
    text = text.strip().strip('"')
    if match := re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::\d+)?|([0-9.]+):\d+", text):
        text = match[1] or match[2]
    try:
        # An IPv6 zone is free text, which has no place in a log.
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _forwarded(headers: Headers) -> tuple[list[str], str]:
    """Addresses, the client's first, and the scheme that it used. X-Forwarded-* wins over Forwarded (RFC 7239): most
    proxies write the former and pass on what clients send of the latter."""
    hops = [hop for value in headers.getlist("x-forwarded-for") for hop in value.split(",")]
    scheme = _last(headers.getlist("x-forwarded-proto"))
    if not hops and not scheme:
        elements = [element for value in headers.getlist("forwarded") for element in _ELEMENT.findall(value)]
        pairs = [_pairs(element) for element in elements]
        hops = [pair.get("for", "") for pair in pairs]
        scheme = pairs[-1].get("proto", "") if pairs else ""
    return hops, scheme.lower()


def _last(values: Sequence[str]) -> str:
    return values[-1].rpartition(",")[2].strip() if values else ""


def _pairs(element: str) -> Mapping[str, str]:
    return {name.lower(): quoted or plain for name, quoted, plain in _PAIR.findall(element)}


def _is_below(path: str, root: str) -> bool:
    return bool(root) and (path == root or path.startswith(root + "/"))


def _local(location: str) -> str:
    parts = urlsplit(location)
    return parts._replace(scheme="", netloc="").geturl() if parts.netloc and parts.path.startswith("/") else location
