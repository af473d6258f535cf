"""Images and videos that requests name by URL, fetched without being led anywhere but the public internet.

The name is resolved here, every address it has is checked, and the connection goes to a checked address: a name that
resolves to something else a moment later changes nothing. Redirects are followed by hand, each checked in the same way.
"""

from __future__ import annotations

import re
import socket
import ssl
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache

import anyio
import httpx
from anyio import to_thread

from longsight import __version__
from longsight.server.addresses import is_public
from longsight.server.errors import ApiError
from longsight.server.sniff import HEAD_BYTES, IMAGE_TYPES, media_type, spoken

REDIRECTS = (301, 302, 303, 307, 308)
CONNECT_SECONDS = 5.0
# Labels of storage services that say nothing about the content; what says another thing is refused unread.
UNLABELLED = ("", "application/octet-stream", "binary/octet-stream")
PORTS = {"http": 80, "https": 443}

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]


@dataclass(frozen=True)
class FetchLimits:
    """max_bytes: of the body, before and after decompression. seconds: for everything, redirects included.

    types: accepted, as sniff.py names them. allow_private: any address may be connected to; allowed_hosts: names
    and addresses for which that holds alone.
    """

    max_bytes: int = 10 * 2**20
    seconds: float = 30.0
    types: frozenset[str] = IMAGE_TYPES
    redirects: int = 5
    allow_private: bool = False
    allowed_hosts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Fetched:
    """media_type: told from the bytes."""

    content: bytes
    media_type: str


class FetchError(ApiError):
    """Base: the URL's content cannot be had. Messages name the host alone: the rest of a URL may be secret."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message, type="invalid_request_error", code="invalid_url")


class FetchRefusedError(FetchError):
    """A URL that is never followed: its scheme, credentials, address, or too many redirects."""


class FetchFailedError(FetchError):
    """The host cannot be found or reached, or answers with an error."""


class FetchTimeoutError(FetchError):
    """The time is over."""


class FetchTooLargeError(FetchError):
    """The body has more bytes than the limit."""


class FetchTypeError(FetchError):
    """The content is of a type that is not accepted."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """The host's addresses, as the system resolves it. Raises OSError."""
    return [str(entry[4][0]) for entry in await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


async def fetch(url: str, *, limits: FetchLimits, resolver: Resolver = resolve) -> Fetched:
    """Raises FetchError."""
    target = _checked(_parse(url))
    first = target.host
    tls = await to_thread.run_sync(_tls)
    try:
        with anyio.fail_after(limits.seconds):
            for _ in range(limits.redirects + 1):
                # A transport for each hop: a connection opened under one name is never used under another.
                async with httpx.AsyncHTTPTransport(verify=tls, trust_env=False) as transport:
                    response = await _open(transport, target, limits, resolver)
                    try:
                        if response.status_code not in REDIRECTS:
                            return await _read(response, target.host, limits)
                    finally:
                        await response.aclose()
                target = _next(target, response)
    except TimeoutError as error:
        raise FetchTimeoutError(f"{target.host}: nothing complete within {limits.seconds:g} s") from error
    except httpx.TimeoutException as error:
        raise FetchTimeoutError(f"{target.host}: no answer in time") from error
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise FetchFailedError(f"{target.host}: {_reason(error)}") from error
    raise FetchRefusedError(f"{first}: more than {limits.redirects} redirects")


@cache
def _tls() -> ssl.SSLContext:
    """Reading the certificates takes a while; SSL_CERT_FILE and SSL_CERT_DIR are honoured, proxies are not."""
    return httpx.create_ssl_context()


def _parse(url: str) -> httpx.URL:
    try:
        return httpx.URL(url)
    except (httpx.InvalidURL, TypeError, ValueError) as error:
        raise FetchRefusedError("the URL cannot be read as one") from error


def _checked(url: httpx.URL) -> httpx.URL:
    # The parser takes much for a host; only a name or an address is one.
    if not re.fullmatch(rb"[A-Za-z0-9._-]*|[0-9A-Fa-f:.]+", url.raw_host):
        raise FetchRefusedError("the URL's host cannot be read as a name or an address")
    if url.scheme not in PORTS or not url.host:
        where = f"{url.host}: " if url.host else ""
        raise FetchRefusedError(f"{where}the URL's scheme is {url.scheme!r}; http and https with a host are accepted")
    if url.userinfo:
        raise FetchRefusedError(f"{url.host}: the URL carries credentials; leave them out")
    return url


def _next(url: httpx.URL, response: httpx.Response) -> httpx.URL:
    location = response.headers.get("location")
    if location is None:
        raise FetchFailedError(f"{url.host}: answered {response.status_code} without a place to go to")
    try:
        return _checked(url.join(location))
    except (httpx.InvalidURL, ValueError) as error:
        raise FetchRefusedError(f"{url.host}: redirects to what cannot be read as a URL") from error


async def _addresses(host: str, port: int, limits: FetchLimits, resolver: Resolver) -> list[str]:
    """The host's addresses, all of them checked."""
    try:
        found = list(dict.fromkeys(await resolver(host, port)))
    except (OSError, UnicodeError) as error:
        raise FetchFailedError(f"{host}: the name does not resolve") from error
    if not found:
        raise FetchFailedError(f"{host}: the name has no address")
    if not (limits.allow_private or host.lower().rstrip(".") in limits.allowed_hosts):
        for address in found:
            if not is_public(address):
                raise FetchRefusedError(
                    f"{host}: its address {address} is not public; only public ones are fetched from"
                )
    return found


async def _open(
    transport: httpx.AsyncHTTPTransport, url: httpx.URL, limits: FetchLimits, resolver: Resolver
) -> httpx.Response:
    """The response's head, from the first address that takes a connection."""
    headers = {
        "host": url.netloc.decode("ascii"),
        "user-agent": f"longsight/{__version__}",
        "accept": ", ".join(sorted(limits.types)),
        "accept-encoding": "identity",
    }
    timeout = httpx.Timeout(limits.seconds, connect=CONNECT_SECONDS).as_dict()
    extensions = {"timeout": timeout, "sni_hostname": url.raw_host.decode("ascii")}
    addresses = await _addresses(url.host, url.port or PORTS[url.scheme], limits, resolver)
    for address in addresses[:-1]:
        try:
            request = httpx.Request("GET", url.copy_with(host=address), headers=headers, extensions=extensions)
            return await transport.handle_async_request(request)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            continue
    request = httpx.Request("GET", url.copy_with(host=addresses[-1]), headers=headers, extensions=extensions)
    return await transport.handle_async_request(request)


async def _read(response: httpx.Response, host: str, limits: FetchLimits) -> Fetched:
    if response.status_code != 200:
        raise FetchFailedError(f"{host}: answered {response.status_code}")
    label = response.headers.get("content-type", "").split(";")[0].strip().lower()
    if label not in UNLABELLED and not label.startswith(("image/", "video/")):
        raise FetchTypeError(f"{host}: sends {label!r}; {spoken(limits.types)} are accepted")
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip"):
        raise FetchTypeError(f"{host}: sends the content encoding {encoding!r}; none was asked for")
    body = _Body(host, limits, gzip=encoding != "identity")
    declared = response.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.max_bytes:
        raise body.too_large()
    async for chunk in response.aiter_raw():
        body.add(chunk)
    return body.whole()


class _Body:
    """Gathers a body and refuses it as early as it can be told; never inflates past the limit."""

    def __init__(self, host: str, limits: FetchLimits, *, gzip: bool) -> None:
        self._host, self._limits = host, limits
        self._received = 0
        self._content = bytearray()
        self._gzip = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS) if gzip else None

    def add(self, chunk: bytes) -> None:
        room = self._limits.max_bytes - len(self._content) + 1
        self._received += len(chunk)
        if self._gzip is not None:
            try:
                chunk = self._gzip.decompress(chunk, room)
            except zlib.error as error:
                raise FetchFailedError(f"{self._host}: sends gzip that cannot be inflated") from error
        unknown = len(self._content) < HEAD_BYTES
        self._content += chunk[:room]
        if max(len(self._content), self._received) > self._limits.max_bytes:
            raise self.too_large()
        if unknown and len(self._content) >= HEAD_BYTES:
            self._type()

    def whole(self) -> Fetched:
        if self._gzip is not None and (not self._gzip.eof or self._gzip.unused_data):
            raise FetchFailedError(f"{self._host}: sends gzip that is not one whole stream")
        kind = self._type()
        return Fetched(bytes(self._content), kind)

    def too_large(self) -> FetchTooLargeError:
        return FetchTooLargeError(f"{self._host}: sends more than {self._limits.max_bytes} bytes, the limit")

    def _type(self) -> str:
        kind = media_type(bytes(self._content[:HEAD_BYTES]))
        if kind is None or kind not in self._limits.types:
            what = spoken(frozenset([kind])) if kind else f"bytes that begin {bytes(self._content[:12])!r}"
            raise FetchTypeError(f"{self._host}: sends {what}; {spoken(self._limits.types)} are accepted")
        return kind


def _reason(error: Exception) -> str:
    match error:
        case httpx.ConnectError():
            return "no connection"
        case httpx.ProtocolError():
            return "does not speak HTTP, or broke off"
    return f"the transfer failed ({type(error).__name__})"
