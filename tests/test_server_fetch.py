"""Fetching by URL from real servers on loopback, some of which mean harm."""

from __future__ import annotations

import gzip
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
import trustme

from longsight.server import fetch as module
from longsight.server.addresses import is_public
from longsight.server.fetch import (
    Fetched,
    FetchError,
    FetchFailedError,
    FetchLimits,
    FetchRefusedError,
    FetchTimeoutError,
    FetchTooLargeError,
    FetchTypeError,
    Resolver,
    fetch,
)
from longsight.server.sniff import VIDEO_TYPES

PNG = b"\x89PNG\r\n\x1a\n" + b"p" * 1000
MP4 = b"\x00\x00\x00\x20ftypisom" + b"v" * 1000
SECRET = "SECRET"  # in the query of every URL, in no message
HERE = frozenset({"127.0.0.1", "media.test"})

Page = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        self.server.asked.append((self.path.partition("?")[0], self.headers["Host"]))
        try:
            self.server.pages[urlsplit(self.path).path](self)
        except (BrokenPipeError, ConnectionResetError):
            self.server.broken.set()

    def head(self, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Web(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, Page] = {}
        self.asked: list[tuple[str, str]] = []
        self.broken, self.ended = threading.Event(), threading.Event()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def url(self, path: str, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}?token={SECRET}"

    def redirect(self, path: str, to: str) -> str:
        self.pages[path] = lambda h: h.head(302, Location=to)
        return self.url(path)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Handshakes that a client breaks off are what some tests are about."""


@contextmanager
def running(web: Web) -> Iterator[Web]:
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield web
    finally:
        web.ended.set()
        web.shutdown()
        thread.join()
        web.server_close()


@pytest.fixture
def web() -> Iterator[Web]:
    with running(Web()) as web:
        web.pages["/a.png"] = lambda h: (h.head(Content_Type="image/png"), h.wfile.write(PNG))[0]
        yield web


@dataclass
class Names:
    """A resolver that answers from lists, one after the other, the last for ever; it counts how often it was asked."""

    answers: list[Sequence[str]]
    asked: list[str] = field(default_factory=list)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        if not answer:
            raise OSError("unknown")
        return answer


def get(url: str, resolver: Resolver = module.resolve, **limits: Any) -> Fetched:
    options = {"allowed_hosts": HERE, "seconds": 10, **limits}

    async def run() -> Fetched:
        return await fetch(url, limits=FetchLimits(**options), resolver=resolver)

    return anyio.run(run)


def refused(kind: type[FetchError], words: str, url: str, resolver: Resolver = module.resolve, **limits: Any) -> None:
    with pytest.raises(FetchError) as caught:
        get(url, resolver, **limits)
    assert type(caught.value) is kind, repr(caught.value)
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.status == 400


def test_an_image_and_a_video(web: Web) -> None:
    assert get(web.url("/a.png")) == Fetched(PNG, "image/png")
    # Labels are storage services' business; the bytes say what it is.
    for label in ("video/mp4", "VIDEO/MOV; charset=x", "application/octet-stream", "binary/octet-stream", "image/png"):
        web.pages["/v"] = lambda h, label=label: (h.head(Content_Type=label), h.wfile.write(MP4))[0]
        assert get(web.url("/v"), types=VIDEO_TYPES) == Fetched(MP4, "video/mp4")
    web.pages["/v"] = lambda h: (h.head(), h.wfile.write(MP4))[0]
    assert get(web.url("/v"), types=VIDEO_TYPES).media_type == "video/mp4"
    refused(FetchTypeError, "127.0.0.1: sends MP4; JPEG, PNG, GIF, WEBP are accepted", web.url("/v"))
    assert get(web.url("/a.png"), allowed_hosts=frozenset(), allow_private=True).content == PNG


def test_the_name_is_asked_for_once_and_sent_along(web: Web) -> None:
    # The name exists in no other resolver: the connection can only have gone to the address given here.
    names = Names([["127.0.0.1"], ["192.0.2.1"]])
    assert get(web.url("/a.png", "media.test"), names).content == PNG
    assert names.asked == ["media.test"]
    assert web.asked == [("/a.png", f"media.test:{web.port}")]


def test_a_name_that_rebinds_between_hops_is_checked_anew(web: Web) -> None:
    """First the allowed server, which redirects to a name whose second answer would be private."""
    web.redirect("/hop", web.url("/a.png", "rebind.test"))
    names = Names([["127.0.0.1"], ["127.0.0.1"]])
    refused(FetchRefusedError, "rebind.test: its address 127.0.0.1 is not public", web.url("/hop", "media.test"), names)
    assert names.asked == ["media.test", "rebind.test"]
    assert [path for path, _ in web.asked] == ["/hop"]


def test_one_private_address_among_public_ones_is_enough(web: Web) -> None:
    names = Names([["93.184.215.14", "127.0.0.1"]])
    refused(FetchRefusedError, "x.test: its address 127.0.0.1", web.url("/a.png", "x.test"), names)
    assert web.asked == []


def test_the_next_address_is_tried(web: Web) -> None:
    assert get(web.url("/a.png", "media.test"), Names([["127.0.0.9", "127.0.0.1", "::1"]])).content == PNG


@pytest.mark.parametrize("host", ["127.0.0.2", "localhost", "[::1]", "2130706433", "0x7f.1", "0", "LOCALHOST"])
def test_redirects_to_private_addresses(web: Web, host: str) -> None:
    refused(FetchRefusedError, "is not public", web.redirect("/hop", web.url("/a.png", host)))
    assert [path for path, _ in web.asked] == ["/hop"]
    refused(FetchRefusedError, "is not public", web.url("/a.png", host))


def test_redirects(web: Web) -> None:
    web.redirect("/4", "a.png?x#y")
    for i in range(4):
        web.redirect(f"/{i}", f"/{i + 1}")
    assert get(web.url("/0")).content == PNG  # five of them
    refused(FetchRefusedError, "127.0.0.1: more than 4 redirects", web.url("/0"), redirects=4)
    web.redirect("/loop", "/loop")
    refused(FetchRefusedError, "more than 5 redirects", web.url("/loop"))
    refused(FetchRefusedError, "'file'", web.redirect("/file", f"file:///etc/passwd?{SECRET}"))
    refused(FetchRefusedError, "credentials", web.redirect("/user", f"http://me:{SECRET}@127.0.0.1/"))
    refused(FetchRefusedError, "cannot be read", web.redirect("/bad", f"http://[{SECRET}"))
    web.pages["/nowhere"] = lambda h: h.head(301)
    refused(FetchFailedError, "answered 301 without", web.url("/nowhere"))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "scheme is ''"),
        ("ftp://x.test/SECRET", "x.test: the URL's scheme is 'ftp'"),
        ("file:///SECRET", "scheme is 'file'"),
        ("//x.test/?SECRET", "scheme is ''"),
        ("http:///?SECRET", "with a host"),
        ("http://user:SECRET@x.test/", "x.test: the URL carries credentials"),
        ("https://SECRET@x.test/", "x.test: the URL carries credentials"),
        ("http://x.test:SECRET/", "cannot be read"),
        ("http://[SECRET/", "cannot be read"),
        ("http://x.test/\x00SECRET", "cannot be read"),
        ("http://x.test/" + SECRET * 20_000, "cannot be read"),
    ],
)
def test_urls_that_are_never_followed(url: str, words: str) -> None:
    refused(FetchRefusedError, words, url)


def test_hosts_that_are_not_there(web: Web) -> None:
    refused(FetchFailedError, "x.test: the name does not resolve", f"http://x.test/?{SECRET}", Names([[]]))
    refused(FetchFailedError, "media.test: no connection", web.url("/", "media.test"), Names([["127.0.0.9"]]))
    web.pages["/gone"] = lambda h: h.head(404)
    refused(FetchFailedError, "127.0.0.1: answered 404", web.url("/gone"))
    web.pages["/cut"] = lambda h: (h.head(Content_Length="5000"), h.wfile.write(PNG))[0]
    refused(FetchFailedError, "broke off", web.url("/cut"))
    web.pages["/other"] = lambda h: (h.wfile.write(b"SSH-2.0-x\r\n"), None)[1]
    refused(FetchFailedError, "does not speak HTTP", web.url("/other"))


def test_other_content(web: Web) -> None:
    def page(content: bytes, **headers: str) -> str:
        web.pages["/x"] = lambda h: (h.head(**headers), h.wfile.write(content))[0]
        return web.url("/x")

    refused(FetchTypeError, "sends 'text/html'", page(PNG, Content_Type="text/html; charset=utf-8"))
    refused(FetchTypeError, "begin b'<html>", page(b"<html>" * 100, Content_Type="image/png"))
    refused(FetchTypeError, "begin b''", page(b"", Content_Type="image/png"))
    refused(FetchTypeError, "encoding 'br'", page(PNG, Content_Type="image/png", Content_Encoding="br"))
    refused(FetchTypeError, "encoding 'gzip, gzip'", page(PNG, Content_Encoding="gzip, gzip"))


def test_slow_answers_end(web: Web) -> None:
    web.pages["/head"] = lambda h: (web.ended.wait(10), None)[1]
    refused(FetchTimeoutError, "127.0.0.1: nothing complete within 0.3 s", web.url("/head"), seconds=0.3)

    def drip(h: Handler) -> None:
        # Each read succeeds in good time; only the sum of them is too long.
        h.head(Content_Type="image/png")
        h.wfile.write(PNG)
        while not web.ended.wait(0.01):
            h.wfile.write(b"p")

    web.pages["/body"] = drip
    refused(FetchTimeoutError, "nothing complete within 0.3 s", web.url("/body"), seconds=0.3)
    assert web.broken.wait(10), "the connection was left open"

    async def stuck(host: str, port: int) -> Sequence[str]:
        await anyio.sleep_forever()
        raise AssertionError

    refused(FetchTimeoutError, "x.test: nothing complete", f"http://x.test/?{SECRET}", stuck, seconds=0.1)


def test_bodies_over_the_limit(web: Web) -> None:
    sent = 0

    def endless(h: Handler) -> None:
        nonlocal sent
        h.head(Content_Type="image/png")
        h.wfile.write(PNG)
        while True:
            sent += h.wfile.write(b"p" * 65536)

    web.pages["/endless"] = endless
    refused(FetchTooLargeError, "127.0.0.1: sends more than 100000 bytes", web.url("/endless"), max_bytes=100_000)
    assert web.broken.wait(10)
    assert sent < 32 * 2**20  # what the sockets hold between them

    web.pages["/declared"] = lambda h: (h.head(Content_Length=str(10**12)), web.ended.wait(10))[0]
    refused(FetchTooLargeError, "sends more than", web.url("/declared"))
    assert get(web.url("/a.png"), max_bytes=len(PNG)).content == PNG
    refused(FetchTooLargeError, "sends more than", web.url("/a.png"), max_bytes=len(PNG) - 1)


def test_gzip_is_inflated_within_the_limit(web: Web) -> None:
    def page(packed: bytes) -> str:
        web.pages["/z"] = lambda h: (h.head(Content_Encoding="gzip"), h.wfile.write(packed))[0]
        return web.url("/z")

    packed = gzip.compress(PNG)
    assert get(page(packed), max_bytes=len(PNG)).content == PNG
    refused(FetchTooLargeError, "sends more than", page(packed), max_bytes=len(PNG) - 1)
    bomb = gzip.compress(PNG + bytes(64 * 2**20))
    assert len(bomb) < 100_000
    refused(FetchTooLargeError, "sends more than 1000000 bytes", page(bomb), max_bytes=1_000_000)
    for damaged in (packed[:-1], packed[:-9], packed + b"x", packed + packed, b"no gzip", b""):
        refused(FetchFailedError, "gzip", page(damaged))


def test_a_bomb_takes_no_more_memory_than_the_limit() -> None:
    import tracemalloc

    bomb = gzip.compress(PNG + bytes(64 * 2**20))
    body = module._Body("x.test", FetchLimits(max_bytes=2**20), gzip=True)
    tracemalloc.start()
    try:
        with pytest.raises(FetchTooLargeError):
            body.add(bomb)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_over_tls_the_certificate_is_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    module._tls.cache_clear()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("media.test").configure_cert(context)
    asked: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    web = Web()
    web.socket = context.wrap_socket(web.socket, server_side=True)
    web.pages["/a.png"] = lambda h: (h.head(), h.wfile.write(PNG))[0]
    try:
        with running(web):
            names = Names([["127.0.0.1"]])
            assert get(web.url("/a.png", "media.test", "https"), names).content == PNG
            assert asked == ["media.test"]
            assert web.asked == [("/a.png", f"media.test:{web.port}")]
            allowed = HERE | {"other.test"}
            url = web.url("/a.png", "other.test", "https")
            refused(FetchFailedError, "other.test: no connection", url, names, allowed_hosts=allowed)
            assert len(web.asked) == 1
    finally:
        module._tls.cache_clear()


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "93.184.215.14", "100.63.255.255", "172.32.0.1", "192.0.3.1", "2606:4700::1111", "2a00:1450:4001::1"],
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254"),
        *("172.16.0.1", "192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1"),
        *("203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "168.63.129.16"),
        *("::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "64:ff9b:1::1", "100::1"),
        *("2001::1", "2001:db8::1", "2002:7f00:1::", "2002:808:808::1", "3fff::1", "fc00::1", "fd12::1"),
        *(
            "fe80::1",
            "fe80::1%eth0",
            "fec0::1",
            "ff02::1",
            "5f00::1",
            "4000::1",
            "media.test",
            "",
            "127.1",
            "0177.0.0.1",
        ),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)
