"""The ledger behind a real server: a line for each request however it ends, and /v1/usage over it."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from live_server import LiveServer, live_server, wait_for
from longsight.cli.main import main
from longsight.ops import LongsightError
from longsight.server.errors import on_error
from longsight.server.identity import Caller
from longsight.server.metering.database import open_database
from longsight.server.metering.ledger import Ledger
from longsight.server.metering.meter import LedgerMeter
from longsight.server.metering.prices import CurrencyRate, PriceRow, PriceTable, Rates
from longsight.server.metering.tables import lines
from longsight.server.usage_api import routes
from slow_ledger import SlowLedger
from usage_records import record

MILLION = 1_000_000
PRICES = PriceTable(
    [PriceRow("tiny", Rates(1 * MILLION, 10 * MILLION)), PriceRow("MiniMax-M3", Rates(MILLION, MILLION))],
    [CurrencyRate("DZD", 350 * MILLION)],
)
PROMPT = "abcabcabcabcabcabcab"


@dataclass
class Metered:
    server: LiveServer
    meter: LedgerMeter
    path: Path

    def lines(self) -> list[dict[str, Any]]:
        engine = open_database(str(self.path), read_only=True)
        with engine.connect() as connection:
            found = [dict(row) for row in connection.execute(select(lines).order_by(lines.c.started)).mappings()]
        engine.dispose()
        return found


@pytest.fixture
def metered(tmp_path: Path) -> Iterator[Metered]:
    path = tmp_path / "ledger.db"
    with (
        closing(Ledger.open(str(path))) as ledger,
        closing(LedgerMeter(PRICES, ledger, currency="DZD")) as meter,
        live_server(meter=meter) as server,
    ):
        yield Metered(server, meter, path)


def complete(server: LiveServer, **options: Any) -> httpx.Response:
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 6, "temperature": 0, **options}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=30)


def test_every_answer_has_its_line_when_its_last_byte_arrives(metered: Metered) -> None:
    whole = complete(metered.server)
    assert [row["request_id"] for row in metered.lines()] == [whole.headers["x-request-id"]]
    streamed = complete(metered.server, stream=True)
    assert streamed.text.endswith("data: [DONE]\n\n")
    first, second = metered.lines()
    assert second["request_id"] == streamed.headers["x-request-id"]
    used = whole.json()["usage"]
    for row in (first, second):
        assert (row["prompt_tokens"], row["completion_tokens"]) == (used["prompt_tokens"], used["completion_tokens"])
        assert (row["status"], row["model"], row["caller"]) == ("ok", "tiny", "anonymous")
        assert row["usd_micro"] == used["prompt_tokens"] + 10 * used["completion_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_no_answer_ends_before_its_line_is_committed(tmp_path: Path, stream: bool) -> None:
    with (
        closing(SlowLedger(open_database(str(tmp_path / "ledger.db")))) as ledger,
        closing(LedgerMeter(PRICES, ledger)) as meter,
        live_server(meter=meter) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(complete, server, stream=stream)
        try:
            assert ledger.begun.wait(10)
            with pytest.raises(TimeoutError):
                answer.result(0.3)
        finally:
            ledger.go.set()
        assert answer.result(10).status_code == 200


def test_what_was_refused_has_no_line(metered: Metered) -> None:
    assert complete(metered.server, max_tokens=-1).status_code == 400
    assert metered.lines() == []


def test_a_client_that_leaves_pays_for_what_was_generated(metered: Metered) -> None:
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 900, "temperature": 0, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{metered.server.url}/v1/completions", json=body, timeout=30) as response:
        next(response.iter_lines())
    wait_for(lambda: len(metered.lines()) == 1)
    (row,) = metered.lines()
    assert row["status"] == "cancelled"
    assert 1 <= row["completion_tokens"] < 900
    assert row["usd_micro"] == row["prompt_tokens"] + 10 * row["completion_tokens"]
    metered.server.wait_until_idle()


def test_an_answer_is_delivered_even_when_its_line_cannot_be(
    metered: Metered, caplog: pytest.LogCaptureFixture
) -> None:
    metered.meter.close()
    answer = complete(metered.server)
    assert answer.status_code == 200
    assert any(f'"{answer.headers["x-request-id"]}"' in r.getMessage() for r in caplog.records)


def test_kill_9_after_the_last_byte_loses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    script = Path(__file__).with_name("metered_server.py")
    with subprocess.Popen([sys.executable, str(script), str(path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            answered = set()
            for stream in (False, True) * 5:
                body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 6, "stream": stream}
                answered.add(httpx.post(f"{url}/v1/completions", json=body, timeout=30).headers["x-request-id"])
        finally:
            process.kill()
    with closing(Ledger.open(str(path))) as ledger:
        assert ledger.groups()[0].sums.requests == 10
    engine = open_database(str(path), read_only=True)
    with engine.connect() as connection:
        assert set(connection.execute(select(lines.c.request_id)).scalars()) == answered
    engine.dispose()


def test_usage_over_http(metered: Metered) -> None:
    for _ in range(3):
        complete(metered.server)
    rows = metered.lines()
    url = f"{metered.server.url}/v1/usage"
    answer = httpx.get(url, params={"group_by": "model,key,day"}).json()
    assert answer["currency"] == "DZD"
    (group,) = answer["data"]
    assert (group["model"], group["key"], group["day"]) == ("tiny", "anonymous", rows[0]["day"].isoformat())
    assert group["amount_micro"] == answer["total"]["amount_micro"] == 350 * sum(r["usd_micro"] for r in rows)
    in_usd = httpx.get(url, params={"currency": "usd"}).json()["total"]
    assert in_usd["amount_micro"] == sum(r["usd_micro"] for r in rows)
    assert in_usd["amount"] == f"0.{in_usd['amount_micro']:06d}"
    assert httpx.get(url, params={"to": "2020-01-01"}).json()["total"]["requests"] == 0
    for text in (httpx.get(f"{url}.csv"), httpx.get(url, headers={"accept": "text/csv"})):
        assert text.headers["content-type"] == "text/csv; charset=utf-8"
        (row,) = csv.DictReader(io.StringIO(text.text))
        assert (row["model"], row["requests"], row["currency"]) == ("tiny", "3", "DZD")
        assert int(row["amount_micro"]) == group["amount_micro"]


@pytest.mark.parametrize(
    ("query", "param", "words"),
    [
        ("group_by=colour", "group_by", "'colour'; it can have organisation, key, model, day"),
        ("group_by=day,model,day", "group_by", "'day' twice"),
        ("currency=EUR", "currency", "'EUR'; there are amounts in DZD, USD"),
        ("from=yesterday", "from", "'yesterday'; it must be a day"),
        ("from=2026-02-02&to=2026-02-01", "to", "there are no days"),
    ],
)
def test_what_cannot_be_asked(metered: Metered, query: str, param: str, words: str) -> None:
    answer = httpx.get(f"{metered.server.url}/v1/usage?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert words in answer.json()["error"]["message"]


def test_a_server_without_a_ledger_says_so(server: LiveServer) -> None:
    answer = httpx.get(f"{server.url}/v1/usage")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_ledger")


class As:
    """Middleware that says who calls."""

    def __init__(self, app: ASGIApp, caller: Caller) -> None:
        self.app, self.caller = app, caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["caller"] = self.caller
        await self.app(scope, receive, send)


def test_a_key_sees_its_own_organisation_and_an_administrator_all(metered: Metered) -> None:
    for number, organisation in enumerate(("acme", "acme", "globex")):
        metered.meter.settle(record(f"r{number}", organisation=organisation))

    def ask(caller: Caller, **query: str) -> httpx.Response:
        app = Starlette(
            routes=routes,
            middleware=[Middleware(As, caller=caller)],
            exception_handlers={LongsightError: on_error},
        )
        app.state.service = SimpleNamespace(meter=metered.meter)
        return TestClient(app).get("/v1/usage", params=query)

    def requests(answer: httpx.Response) -> dict[str, int]:
        return {group["organisation"]: group["requests"] for group in answer.json()["data"]}

    by = {"group_by": "organisation"}
    acme = Caller("key_1", "acme", frozenset({"usage"}))
    assert requests(ask(acme, **by)) == {"acme": 2}
    assert requests(ask(acme, **by, organisation="acme")) == {"acme": 2}
    assert ask(acme, organisation="globex").status_code == 403
    assert ask(Caller("key_2", "acme", frozenset({"chat"}))).status_code == 403
    admin = Caller("key_3", "operators", frozenset({"usage", "admin"}))
    assert requests(ask(admin, **by)) == {"acme": 2, "globex": 1}
    assert requests(ask(admin, **by, organisation="globex")) == {"globex": 1}


def test_a_lost_database_is_no_secret_told(metered: Metered, caplog: pytest.LogCaptureFixture) -> None:
    complete(metered.server)
    engine = open_database(str(metered.path))
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE ledger_amounts RENAME TO elsewhere")
    engine.dispose()
    answer = httpx.get(f"{metered.server.url}/v1/usage")
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "the ledger cannot be read now")
    assert "no such table" in caplog.text


def test_the_usage_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "ledger.db")
    with closing(Ledger.open(path)) as ledger, closing(LedgerMeter(PRICES, ledger)) as meter:
        for number in range(3):
            meter.settle(record(f"r{number}", model="[bold]tiny" if number else "MiniMax-M3"))
    assert main(["usage", "--ledger", path, "--csv", "--by", "model,day", "--currency", "DZD"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(r["model"], r["requests"], r["amount"]) for r in rows] == [
        ("MiniMax-M3", "1", "0.385000"),
        ("[bold]tiny", "2", "0.000000"),
    ]
    assert main(["usage", "--ledger", path]) == 0
    table = capsys.readouterr().out
    assert "[bold]tiny" in table
    assert "0.001100" in table
    assert main(["usage", "--ledger", path, "--by", "colour"]) == 1
    assert "'colour'" in capsys.readouterr().err
    assert main(["usage", "--ledger", str(tmp_path / "none.db")]) == 1
    missing = f"argument --ledger: No such file or directory: '{tmp_path}/none.db'"
    assert missing in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prices", "{tmp}/prices.toml"], "--prices is of use only with --ledger"),
        (["--currency", "DZD"], "--currency is of use only with --ledger"),
        (["--ledger", "{tmp}/l.db", "--currency", "EUR"], "--currency is EUR; the prices have CNY, DZD, USD"),
        (["--ledger", "{tmp}/l.db", "--prices", "{tmp}/none.toml"], "none.toml"),
        (["--ledger", "{tmp}"], "argument --ledger: Is a directory"),
    ],
)
def test_serve_refuses_options_it_cannot_follow(
    options: list[str], words: str, tmp_path: Path, constructed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prices.toml").touch()
    assert main(["serve", "constructed", "--port", "0", *(o.replace("{tmp}", str(tmp_path)) for o in options)]) == 1
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_serve_keeps_a_ledger(tmp_path: Path, constructed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger, prices = tmp_path / "ledger.db", tmp_path / "prices.toml"
    prices.write_text('[[price]]\nmodel = "longsight"\ninput = 1\noutput = 2\n')
    command = [sys.executable, "-m", "longsight.cli.main", "serve", "constructed", "--port", "0"]
    command += ["--max-model-len", "4096", "--threads", "1", "--ledger", str(ledger), "--prices", str(prices)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            url = process.stderr.readline().rsplit(" on ", 1)[1].strip()
            body = {"model": "longsight", "prompt": PROMPT, "max_tokens": 6, "temperature": 0}
            used = httpx.post(f"{url}/completions", json=body, timeout=60).json()["usage"]
        finally:
            process.terminate()
    assert main(["usage", "--ledger", str(ledger), "--csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert int(row["amount_micro"]) == used["prompt_tokens"] + 2 * used["completion_tokens"]
