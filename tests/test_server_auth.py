"""API keys: made, checked, limited, taken away."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from clock import Clock
from live_server import LiveServer, live_server
from longsight.cli.main import main
from longsight.server import stored_keys
from longsight.server.auth import StaticKey, is_public, scope_of
from longsight.server.errors import ApiError
from longsight.server.identity import SCOPES
from longsight.server.keys import Key, KeyStore, KeyStoreError, NewKey, split
from longsight.server.stored_keys import CACHE_SECONDS, StoredKeys

ASK: dict[str, Any] = {"model": "tiny", "prompt": "abcabc", "max_tokens": 2}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KeyStore]:
    store = KeyStore(str(tmp_path / "keys.db"), create=True)
    yield store
    store.close()


@pytest.fixture
def clock() -> Clock:
    return Clock(100.0)


@pytest.fixture
def guarded(store: KeyStore, clock: Clock) -> Iterator[LiveServer]:
    """A server that asks for the store's keys, and takes the key `static` too."""
    with live_server(authenticator=StoredKeys(store, StaticKey("static"), clock)) as server:
        yield server


def ask(server: LiveServer, key: str, **fields: Any) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
        client.completions.create(**{**ASK, **fields})


def status(server: LiveServer, path: str, method: str = "GET", **headers: str) -> int:
    return httpx.request(method, f"{server.url}{path}", headers=headers).status_code


def test_no_key_and_wrong_keys(guarded: LiveServer, store: KeyStore) -> None:
    ask(guarded, "static")
    _, text = store.create(NewKey("alice"))
    ask(guarded, text)
    for wrong in ("wrong", text[:-1], text[:-1] + ("0" if text[-1] != "0" else "1"), f"lsk_{'0' * 12}_{'0' * 64}", "é"):
        response = httpx.post(
            f"{guarded.url}/v1/completions", json=ASK, headers={"authorization": f"Bearer {wrong}".encode()}
        )
        assert response.status_code == 401
        assert response.json()["error"]["message"] == "the API key is not known here"
        assert text not in response.text
    response = httpx.post(f"{guarded.url}/v1/completions", json=ASK)
    assert response.status_code == 401
    assert "an API key is needed" in response.json()["error"]["message"]
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.AuthenticationError):
        ask(guarded, "wrong")


def test_bearer_wins_over_x_api_key(guarded: LiveServer) -> None:
    for headers, expected in (
        ({"authorization": "Bearer static"}, 200),
        ({"authorization": "bearer  static"}, 200),
        ({"x-api-key": "static"}, 200),
        ({"authorization": "Bearer static", "x-api-key": "wrong"}, 200),
        ({"authorization": "Bearer wrong", "x-api-key": "static"}, 401),
        ({"authorization": "Bearer", "x-api-key": "static"}, 200),
        ({"authorization": "Basic c3RhdGlj", "x-api-key": "static"}, 200),
        ({"authorization": "static"}, 401),
    ):
        assert httpx.get(f"{guarded.url}/v1/models", headers=headers).status_code == expected, headers


def test_the_anthropic_client_and_the_native_api_are_refused_in_their_shape(
    guarded: LiveServer, store: KeyStore
) -> None:
    _, files_only = store.create(NewKey("files", scopes=["files"]))
    for base in ("", "/anthropic"):
        expected: tuple[tuple[str, type[anthropic.APIStatusError], str], ...] = (
            ("wrong", anthropic.AuthenticationError, "authentication_error"),
            (files_only, anthropic.PermissionDeniedError, "permission_error"),
        )
        for key, error, kind in expected:
            with anthropic.Anthropic(base_url=guarded.url + base, api_key=key, max_retries=0) as client:
                with pytest.raises(error) as caught:
                    client.messages.create(model="tiny", max_tokens=5, messages=[{"role": "user", "content": "x"}])
                assert caught.value.type == kind
                assert caught.value.request_id == caught.value.response.json()["request_id"]
    response = httpx.get(f"{guarded.url}/v1/files/list")
    assert (response.status_code, response.json()["base_resp"]["status_code"]) == (200, 1004)


def test_what_needs_no_key(guarded: LiveServer) -> None:
    assert status(guarded, "/health") == 200
    assert status(guarded, "/", "HEAD") == 200
    assert status(guarded, "/") == 200  # the page, which asks for a key itself
    assert status(guarded, "/v1/models") == 401
    assert status(guarded, "/v1/nothing") == 401, "what exists is nobody's business without a key"
    assert [is_public("GET", p) for p in ("/ready", "/readyz", "/health/", "/metrics")] == [True, False, False, False]
    assert is_public("HEAD", "/anthropic")


def test_without_authentication_everybody_may_do_everything(server: LiveServer) -> None:
    ask(server, "whatever")
    assert status(server, "/v1/models") == 200


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/completions", "chat"),
        ("/v1/responses", "chat"),
        ("/v1/responses/resp_1/cancel", "chat"),
        ("/v1/messages", "chat"),
        ("/anthropic/v1/messages/count_tokens", "chat"),
        ("/v1/files", "files"),
        ("/v1/files/upload", "files"),
        ("/v1/token_plan/remains", "usage"),
        ("/metrics", "admin"),
        ("/admin/keys", "admin"),
        ("/v1/models", None),
        ("/v1/filesystem", None),
    ],
)
def test_each_path_has_its_scope(guarded: LiveServer, store: KeyStore, path: str, scope: str | None) -> None:
    assert scope_of(path) == scope
    _, without = store.create(NewKey("without", scopes=[s for s in SCOPES if s != scope]))
    response = httpx.post(f"{guarded.url}{path}", headers={"x-api-key": without})
    native = path == "/v1/files/upload"
    assert (response.status_code == 403 or native) == (scope is not None)
    if scope is not None:
        assert f"this needs the scope '{scope}'" in response.text


def test_the_role_root_needs_its_scope(guarded: LiveServer, store: KeyStore) -> None:
    _, plain = store.create(NewKey("plain"))
    body = {
        "model": "tiny",
        "max_tokens": 1,
        "messages": [{"role": "root", "content": "x"}, {"role": "user", "content": "y"}],
    }
    for key, expected in ((plain, 403), ("static", 200)):
        response = httpx.post(f"{guarded.url}/v1/chat/completions", json=body, headers={"x-api-key": key}, timeout=30)
        assert response.status_code == expected, response.text


def test_a_key_for_some_models(guarded: LiveServer, store: KeyStore) -> None:
    _, other = store.create(NewKey("other", models=["MiniMax-*", "x"]))
    with pytest.raises(openai.PermissionDeniedError, match="is not for the model 'tiny'; it is for 'MiniMax-\\*', 'x'"):
        ask(guarded, other)
    _, fits = store.create(NewKey("fits", models=["t*y"]))
    ask(guarded, fits)


def test_a_disabled_or_deleted_key_stops_within_seconds(
    guarded: LiveServer, store: KeyStore, clock: Clock, tmp_path: Path
) -> None:
    other_process = KeyStore(str(tmp_path / "keys.db"))
    for take_away, words in ((other_process.disable, "is disabled"), (other_process.delete, "is not known here")):
        key, text = store.create(NewKey("alice"))
        ask(guarded, text)
        take_away(key.id)
        clock.now += CACHE_SECONDS - 0.01
        ask(guarded, text)
        clock.now += 0.02
        with pytest.raises(openai.AuthenticationError, match=words):
            ask(guarded, text)
    key, text = store.create(NewKey("bob"))
    store.disable(key.id)
    store.disable(key.id, False)
    ask(guarded, text)
    other_process.close()


def test_an_expired_key(guarded: LiveServer, store: KeyStore) -> None:
    _, text = store.create(NewKey("old", expires=int(time.time()) - 1))
    with pytest.raises(openai.AuthenticationError, match="is expired"):
        ask(guarded, text)
    _, text = store.create(NewKey("new", expires=int(time.time()) + 1000))
    ask(guarded, text)


def test_a_key_is_read_once_in_a_while(store: KeyStore, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_keys, "CACHED_KEYS", 20)
    reads = 0

    def count(*args: object) -> None:
        nonlocal reads
        reads += 1

    _, text = store.create(NewKey("alice"))
    sa.event.listen(store._engine, "before_cursor_execute", count)

    async def many() -> None:
        keys = StoredKeys(store, clock=clock)
        callers = await asyncio.gather(*(keys.caller(text) for _ in range(50)))
        assert {c.organisation for c in callers} == {"default"}
        for _ in range(50):
            await keys.caller(text)
        assert reads == 1
        clock.now += CACHE_SECONDS
        await keys.caller(text)
        assert reads == 2
        for i in range(30):
            with pytest.raises(ApiError):
                await keys.caller(f"lsk_{i:012x}_{'0' * 64}")
        assert len(keys._cache) == 20

    asyncio.run(many())


def test_a_database_that_fails_is_a_503_and_lets_nobody_in(
    guarded: LiveServer, store: KeyStore, tmp_path: Path
) -> None:
    _, text = store.create(NewKey("alice"))
    with sqlite3.connect(tmp_path / "keys.db") as connection:
        connection.execute("ALTER TABLE api_keys RENAME TO elsewhere")
    connection.close()
    with pytest.raises(openai.InternalServerError) as caught:
        ask(guarded, text)
    assert caught.value.status_code == 503
    assert "api_keys" not in caught.value.response.text
    ask(guarded, "static")


def test_a_large_body_with_a_wrong_key_is_a_401_and_no_broken_connection(guarded: LiveServer) -> None:
    with pytest.raises(openai.AuthenticationError):
        ask(guarded, "wrong", prompt="x" * 8_000_000)


def test_secrets_are_not_stored(store: KeyStore, tmp_path: Path) -> None:
    key, text = store.create(NewKey("alice"))
    secret = text.rsplit("_", 1)[1]
    assert len(secret) == 64
    content = (tmp_path / "keys.db").read_bytes()
    assert key.id.encode() in content
    assert secret.encode() not in content
    assert key.hash not in repr(key)
    assert store.create(NewKey("alice"))[1] != text


@given(st.lists(st.sampled_from(["lsk", "_", "0" * 12, "a" * 64, "٣" * 12, " "]), max_size=6).map("".join))
def test_only_keys_of_ours_are_looked_up(text: str) -> None:
    parts = split(text)
    assert parts is None or text == f"lsk_{parts[0]}_{parts[1]}"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scopes": ["chat", "fly"]}, "'fly' is unknown; there are chat, files"),
        ({"name": " "}, "the name is ' '; it must have 1 to 200"),
        ({"organisation": "x" * 201}, "the organisation is"),
        ({"rpm": 0}, "rpm is 0; it must be"),
        ({"models": []}, "the models are []"),
    ],
)
def test_keys_that_make_no_sense(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(KeyStoreError) as caught:
        NewKey(**{"name": "alice", **fields})
    assert words in str(caught.value)


def test_everything_of_a_key_is_kept(store: KeyStore, tmp_path: Path) -> None:
    new = NewKey("[b]ci", "acme", ("chat", "root"), ("a*", "b"), 2**33, 5, 6, 7)
    key, _ = store.create(new)
    again = KeyStore(str(tmp_path / "keys.db"))
    (found,) = again.all()
    assert found == key == again.find(key.id)
    assert isinstance(found, Key)
    caller = found.caller()
    assert (caller.organisation, caller.scopes, caller.models) == ("acme", {"chat", "root"}, ("a*", "b"))
    assert (caller.rpm, caller.tpm, caller.concurrency) == (5, 6, 7)
    again.close()


# The command


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LONGSIGHT_AUTH", str(tmp_path / "keys.db"))
    options = ["--organisation", "acme", "--scope", "chat", "--model", "M*", "--expires", "30d", "--rpm", "60"]
    assert main(["keys", "create", "[b]ci", *options]) == 0
    out, err = capsys.readouterr()
    text = out.strip()
    parts = split(text)
    assert parts is not None
    assert "not shown again" in err
    assert parts[1] not in err
    assert main(["keys", "list"]) == 0
    out = capsys.readouterr().out
    for words in (parts[0], "[b]ci", "acme", "chat", "models M*", "rpm 60", "active"):
        assert words in out
    assert parts[1] not in out
    assert main(["keys", "disable", parts[0]]) == 0
    main(["keys", "list"])
    assert "disabled" in capsys.readouterr().out.splitlines()[-4]
    assert main(["keys", "disable", "--undo", parts[0]]) == 0
    assert main(["keys", "delete", parts[0]]) == 0
    capsys.readouterr()
    assert main(["keys", "delete", parts[0]]) == 1
    assert "has no key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["list"], "which database?"),
        (["list", "--auth", "such.db"], "there is no key database such.db; make one: longsight keys create"),
        (["create", "x", "--auth", "no/such/dir.db"], "argument --auth: No such file or directory: 'no/such/dir.db'"),
        (["create", "x", "--auth", "nope://u:secret@h/x"], "argument --auth: the URL's scheme is 'nope'"),
        (["create", "x", "--auth", "://"], "argument --auth: the URL's scheme is ''"),
        (["create", "x", "--auth", "x.db", "--scope", "fly"], "the scope 'fly' is unknown"),
    ],
)
def test_what_the_command_refuses_is_one_line(
    tmp_path: Path,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LONGSIGHT_AUTH", raising=False)
    assert main(["keys", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert "secret" not in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("when", ["soon", "30", "2001-01-01", "5y"])
def test_expiries_that_make_no_sense(when: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["keys", "create", "x", "--auth", "x.db", "--expires", when])
    assert repr(when) in capsys.readouterr().err


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("hello" * 1000)
    with pytest.raises(KeyStoreError, match="is not a database"):
        KeyStore(str(tmp_path / "text.db"))
    sqlite3.connect(tmp_path / "empty.db").close()
    with pytest.raises(KeyStoreError, match="has no table of keys"):
        KeyStore(str(tmp_path / "empty.db"))


def test_what_one_organisation_has_read_is_no_help_to_another(store: KeyStore, guarded: LiveServer) -> None:
    """A cached prompt shows in the time that its answer takes, so pages are shared within an organisation only."""
    mine, too, theirs = (store.create(NewKey(organisation=who, name=who))[1] for who in ("red", "red", "blue"))
    prompt = "The quick brown fox jumps over the lazy dog. " * 3

    def cached(key: str) -> int:
        with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=key, max_retries=0) as client:
            used = client.completions.create(model="tiny", prompt=prompt, max_tokens=1).usage
        assert used is not None
        assert used.prompt_tokens_details is not None
        return used.prompt_tokens_details.cached_tokens or 0

    assert cached(mine) == 0
    assert cached(too) > 100
    assert cached(theirs) == 0
