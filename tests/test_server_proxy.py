"""Behind a reverse proxy: whose address is believed, the path that the proxy serves us under, and HTTPS."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import trustme

from live_server import LiveServer, live_server, wait_for
from longsight.server.access import Access
from longsight.server.file_store import FileStore
from longsight.server.keys import KeyStore, NewKey
from longsight.server.proxy import ProxyError, TrustedProxies, check_root_path
from longsight.server.stored_keys import StoredKeys
from longsight.server.tls import Tls, TlsError

FIELDS: dict[str, Any] = {"model": "tiny", "prompt": "x1y2" * 20, "temperature": 0, "max_tokens": 4}


class Seen(list[Access]):
    """A sink that keeps what it hears."""

    def ended(self, access: Access) -> None:
        self.append(access)


@pytest.mark.parametrize(
    ("trusted", "headers", "client"),
    [
        ("127.0.0.1", {"x-forwarded-for": "192.0.2.7"}, "192.0.2.7"),
        ("127.0.0.1", {"x-forwarded-for": "192.0.2.7:4711"}, "192.0.2.7"),
        ("127.0.0.1", {"x-forwarded-for": "[2001:db8::7]:4711"}, "2001:db8::7"),
        ("127.0.0.1", {"x-forwarded-for": "::ffff:192.0.2.7"}, "192.0.2.7"),
        # What a client wrote itself stands before what our proxy appended.
        ("127.0.0.1", {"x-forwarded-for": "10.9.9.9, 192.0.2.7"}, "192.0.2.7"),
        ("127.0.0.1", {"x-forwarded-for": "127.0.0.1, 192.0.2.7"}, "192.0.2.7"),
        ("*", {"x-forwarded-for": "10.9.9.9, 192.0.2.7"}, "192.0.2.7"),
        # Two proxies of ours.
        ("127.0.0.1, 10.0.0.0/8", {"x-forwarded-for": "6.6.6.6, 192.0.2.7, 10.1.2.3"}, "192.0.2.7"),
        ("127.0.0.1,10.0.0.0/8", {"x-forwarded-for": "10.1.2.4, 10.1.2.3"}, "10.1.2.4"),
        # Words that are no addresses end the trust, and get nowhere.
        ("127.0.0.1,10.0.0.0/8", {"x-forwarded-for": "192.0.2.7, unknown, 10.1.2.3"}, "10.1.2.3"),
        ("127.0.0.1", {"x-forwarded-for": "key=admin status=200"}, "127.0.0.1"),
        ("127.0.0.1", {"x-forwarded-for": "fe80::1%eth0 key=admin"}, "fe80::1"),
        ("127.0.0.1", {"x-forwarded-for": ""}, "127.0.0.1"),
        ("127.0.0.1", {"forwarded": "for=192.0.2.7;proto=https"}, "192.0.2.7"),
        ("127.0.0.1", {"forwarded": 'for=6.6.6.6, For="[2001:db8::7]:80"; by="a,b"'}, "2001:db8::7"),
        ("127.0.0.1", {"forwarded": "for=_hidden"}, "127.0.0.1"),
        # nginx appends to the one and passes the other on as the client sent it.
        ("127.0.0.1", {"forwarded": "for=6.6.6.6", "x-forwarded-for": "192.0.2.7"}, "192.0.2.7"),
        ("192.0.2.1", {"x-forwarded-for": "6.6.6.6", "forwarded": "for=6.6.6.6"}, "127.0.0.1"),
        ("", {"x-forwarded-for": "6.6.6.6"}, "127.0.0.1"),
    ],
)
def test_whose_word_is_taken(trusted: str, headers: dict[str, str], client: str) -> None:
    seen = Seen()
    with live_server(sinks=[seen], trusted_proxies=TrustedProxies.parse(trusted)) as server:
        httpx.get(f"{server.url}/v1/models", headers=headers).raise_for_status()
        wait_for(lambda: len(seen) == 1)
    assert seen[0].client == client


def test_this_machine_is_trusted_by_default() -> None:
    seen = Seen()
    with live_server(sinks=[seen]) as server:
        httpx.get(f"{server.url}/v1/models", headers={"x-forwarded-for": "192.0.2.7"})
        wait_for(lambda: len(seen) == 1)
    assert seen[0].client == "192.0.2.7"


@pytest.mark.parametrize("text", ["localhost", "10.0.0.1/8", "10.0.0.0/33", "1.2.3.4.5", "*, 10.0.0.1", "http://a"])
def test_proxies_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ProxyError, match="in --forwarded-allow-ips is not a trusted proxy"):
        TrustedProxies.parse(text)


def test_networks_of_either_kind() -> None:
    trusted = TrustedProxies.parse("10.0.0.0/8, ::1")
    assert trusted.trusts(ipaddress.ip_address("10.2.3.4"))
    assert trusted.trusts(ipaddress.ip_address("::1"))
    assert not trusted.trusts(ipaddress.ip_address("11.2.3.4"))


@pytest.mark.parametrize(
    "text", ["longsight", "/longsight/", "/", "//a", "/a b", "/a/../b", "/.", "/ä", "http://x/a", "/a?b"]
)
def test_root_paths_that_make_no_sense(text: str) -> None:
    with pytest.raises(ProxyError, match="begin with / and end without one"):
        check_root_path(text)


def test_root_paths() -> None:
    assert [check_root_path(path) for path in ("", "/a", "/a/b-c_d.e~f")] == ["", "/a", "/a/b-c_d.e~f"]


@pytest.fixture(scope="module")
def under(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveServer, str, Seen]]:
    """A server with keys under /ai, a key for everything, and what it has seen."""
    directory, seen = tmp_path_factory.mktemp("under"), Seen()
    store = KeyStore(str(directory / "keys.db"), create=True)
    secret = store.create(NewKey("all", scopes=("chat", "files", "usage", "admin")))[1]
    with (
        FileStore(directory / "files") as files,
        live_server(root_path="/ai", files=files, authenticator=StoredKeys(store), sinks=[seen]) as server,
    ):
        yield server, secret, seen
    store.close()


@pytest.mark.parametrize("prefix", ["", "/ai"], ids=["the proxy strips it", "the proxy keeps it"])
def test_everything_works_under_a_root_path(under: tuple[LiveServer, str, Seen], prefix: str) -> None:
    server, secret, seen = under
    seen.clear()
    base = server.url + prefix
    html = {"accept": "text/html"}
    with httpx.Client(headers={"x-api-key": secret}) as http:
        page = http.get(f"{base}/", headers=html)
        assert "<title>Longsight</title>" in page.text
        for link in ("web/style.css", "web/app.js"):
            assert http.get(f"{base}/{link}").status_code == 200
        document = http.get(f"{base}/openapi.json").json()
        assert document["servers"] == [{"url": "/ai"}]
        assert "/v1/models" in document["paths"]
        assert http.get(f"{base}/metrics").status_code == 200
        assert http.get(f"{base}/health/", follow_redirects=False).headers["location"] == "/ai/health"
        assert http.get(f"{base}/v1/nothing").json()["error"]["code"] == "unknown_url"
        refused = http.post(f"{base}/anthropic/v1/messages", json={"model": "tiny"})
        assert refused.json()["type"] == "error"
        # The native API answers with a link to the file's content, as the client of the proxy sees it.
        made = http.post(
            f"{base}/v1/files/upload", data={"purpose": "batch"}, files={"file": ("a.jsonl", b"{}")}
        ).json()
        told = http.get(
            f"{base}/v1/files/retrieve",
            params={"file_id": made["file"]["file_id"]},
            headers={"x-forwarded-proto": "https", "host": "ai.example"},
        ).json()
        url = httpx.URL(told["file"]["download_url"])
        assert (url.scheme, url.host, url.path) == ("https", "ai.example", "/ai/v1/files/retrieve_content")
        assert http.get(f"{server.url}{url.raw_path.decode()}").content == b"{}"
    with openai.OpenAI(base_url=f"{base}/v1", api_key=secret, max_retries=0) as client:
        chunks = client.completions.create(**FIELDS, stream=True)
        assert sum(len(chunk.choices) > 0 for chunk in chunks) > 1
    with anthropic.Anthropic(base_url=f"{base}/anthropic", api_key=secret, max_retries=0) as client:
        client.messages.create(model="tiny", max_tokens=2, messages=[{"role": "user", "content": "hello"}])
    wait_for(lambda: any(access.route == "/anthropic/v1/messages" and access.status == 200 for access in seen))
    assert {"/", "/web", "/openapi.json", "/v1/completions"} <= {access.route for access in seen}
    assert not [access.route for access in seen if access.route.startswith("/ai")]


@pytest.mark.parametrize("prefix", ["", "/ai"])
def test_keys_and_scopes_hold_under_a_root_path(under: tuple[LiveServer, str, Seen], prefix: str) -> None:
    server, _, _ = under
    for path in ("/v1/models", "/v1/files", "/metrics", "/ai/v1/models", "/web/../v1/models", "//v1/models"):
        assert httpx.get(server.url + prefix + path).status_code in (401, 404), path
    assert httpx.get(f"{server.url}{prefix}/health").status_code == 200


def test_the_root_path_alone_leads_to_the_page(under: tuple[LiveServer, str, Seen]) -> None:
    """Without the slash the page's own links would lead beside it."""
    server, _, _ = under
    answer = httpx.get(f"{server.url}/ai", headers={"accept": "text/html"})
    assert (answer.status_code, answer.headers["location"]) == (307, "/ai/")


def test_a_path_that_only_begins_alike_is_not_below(under: tuple[LiveServer, str, Seen]) -> None:
    server, secret, _ = under
    assert httpx.get(f"{server.url}/aide/health", headers={"x-api-key": secret}).status_code == 404


def test_event_streams_tell_proxies_not_to_collect_them() -> None:
    message = {"role": "user", "content": "x1y2" * 5}
    asked = {
        "/v1/completions": FIELDS,
        "/v1/chat/completions": {"model": "tiny", "messages": [message], "max_tokens": 2},
        "/v1/responses": {"model": "tiny", "input": "x1y2", "max_output_tokens": 2},
        "/v1/messages": {"model": "tiny", "messages": [message], "max_tokens": 2},
        "/v1/longsight/microscope": {"model": "tiny", "messages": [message], "max_tokens": 2},
    }
    with live_server() as server, httpx.Client(base_url=server.url, timeout=30) as http:
        for path, fields in asked.items():
            headers = http.post(path, json={**fields, "stream": True}).raise_for_status().headers
            assert headers["content-type"].startswith("text/event-stream"), path
            assert (headers["x-accel-buffering"], headers["cache-control"]) == ("no", "no-cache"), path


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def issue(authority: trustme.CA, directory: Path) -> tuple[Path, Path]:
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    chain, key = directory / "chain.pem", directory / "key.pem"
    for i, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(chain, append=i > 0)
    certificate.private_key_pem.write_to_path(key)
    return chain, key


def test_https(authority: trustme.CA, tmp_path: Path) -> None:
    tls = Tls(*issue(authority, tmp_path))
    tls.check()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with live_server(tls=tls) as server, httpx.Client(verify=context) as http:
        assert server.url.startswith("https://")
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=http, max_retries=0) as client:
            assert client.completions.create(**FIELDS).choices[0].finish_reason == "length"
        with pytest.raises(httpx.HTTPError):
            httpx.get(server.url.replace("https", "http"))


def test_certificates_that_cannot_be_used(authority: trustme.CA, tmp_path: Path) -> None:
    chain, key = issue(authority, tmp_path)
    (tmp_path / "other").mkdir()
    other = issue(authority, tmp_path / "other")[1]
    text = tmp_path / "text.pem"
    text.write_text("not a certificate")
    for tls, words in (
        (Tls(tmp_path / "none.pem"), "--ssl-certfile .*none.pem cannot be read: No such file"),
        (Tls(chain, tmp_path), "--ssl-keyfile .* cannot be read: Is a directory"),
        (Tls(chain, other), "the key does not belong to the certificate"),
        (Tls(chain), "in PEM format"),
        (Tls(text, key), "in PEM format"),
    ):
        with pytest.raises(TlsError, match=words):
            tls.check()


def test_an_encrypted_key(authority: trustme.CA, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as pem

    chain, key = issue(authority, tmp_path)
    private = pem.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        private.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.BestAvailableEncryption(b"open sesame"))
    )
    Tls(chain, key, "open sesame").check()
    with pytest.raises(TlsError, match="--ssl-keyfile-password"):
        Tls(chain, key).check()
    with pytest.raises(TlsError, match="password of the key is wrong"):
        Tls(chain, key, "shazam").check()
