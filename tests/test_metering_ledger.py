"""The ledger on real databases: exact sums, crashes, several writers, strange and damaged files."""

from __future__ import annotations

import json
import logging
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import date
from fractions import Fraction
from pathlib import Path
from threading import Barrier

import psycopg
import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import DBAPIError

from live_server import wait_for
from longsight.server.metering.database import open_database
from longsight.server.metering.errors import LedgerError, PriceError
from longsight.server.metering.ledger import GROUPS, Group, Ledger, Line, Sums, total
from longsight.server.metering.meter import LedgerMeter
from longsight.server.metering.prices import DEFAULT_PRICES, PriceTable
from longsight.server.metering.tables import amounts, lines, prices
from longsight.server.usage import UsageRecord
from postgres_cluster import cluster, new_database
from settle_forever import THREADS
from slow_ledger import SlowLedger
from usage_records import random_record, record

PROCESS = [sys.executable, str(Path(__file__).with_name("settle_forever.py"))]


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with cluster() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a new ledger goes, in each kind of database."""
    if request.param == "sqlite":
        yield str(tmp_path / "ledger.db")
    else:
        with new_database(request.getfixturevalue("postgres")) as url:
            yield url


@contextmanager
def opened(where: str, *, read_only: bool = False) -> Iterator[Ledger]:
    with closing(Ledger.open(where, read_only=read_only)) as ledger:
        yield ledger


@contextmanager
def metered(ledger: Ledger, table: PriceTable = DEFAULT_PRICES, wait_seconds: float = 10) -> Iterator[LedgerMeter]:
    with closing(LedgerMeter(table, ledger, wait_seconds=wait_seconds)) as meter:
        yield meter


def ids(where: str) -> set[str]:
    engine = open_database(where, read_only=True)
    with engine.connect() as connection:
        found = connection.execute(select(lines.c.request_id)).scalars().all()
    engine.dispose()
    assert len(found) == len(set(found))
    return set(found)


def line(usage: UsageRecord) -> Line:
    return Line(usage, DEFAULT_PRICES.charge(usage), DEFAULT_PRICES.content)


# Recomputed from the published table alone, in fractions of a USD per token: input, output, cached.
PUBLISHED = {
    ("m3", False): ("0.30", "1.20", "0.06"),
    ("m3", True): ("0.60", "2.40", "0.12"),
    ("m2", False): ("0.50", "2.20", "0.50"),
    ("m2", True): ("0.50", "2.20", "0.50"),
}
PER_USD = {"USD": 1, "DZD": 350, "CNY": 7}


def recomputed(usage: UsageRecord, currency: str) -> int:
    short_name = usage.model.lower().rpartition("-")[2]
    if usage.status == "error" or short_name not in ("m2", "m3"):
        return 0
    new, output, cached = map(Fraction, PUBLISHED[short_name, usage.prompt_tokens > 524_288])
    exact = (usage.prompt_tokens - usage.cached_tokens) * new
    exact += usage.cached_tokens * cached + usage.completion_tokens * output  # a USD per million is a micro-USD each
    return round(exact * (Fraction("1.5") if usage.service_tier == "priority" else 1) * PER_USD[currency])


def expected(records: Sequence[UsageRecord], currency: str) -> Sums:
    return Sums(
        len(records),
        sum(r.prompt_tokens for r in records),
        sum(r.cached_tokens for r in records),
        sum(r.completion_tokens for r in records),
        sum(r.reasoning_tokens for r in records),
        sum(recomputed(r, currency) for r in records),
    )


def test_ten_thousand_requests_add_up_exactly(where: str) -> None:
    rng = random.Random(7)
    records = [random_record(rng, number) for number in range(10_000)]
    again = [replace(r, completion_tokens=r.completion_tokens + 1) for r in rng.sample(records, 500)]
    with opened(where) as ledger:
        for start in range(0, len(records), 1000):
            ledger.add([line(r) for r in records[start : start + 1000]])
        ledger.add([line(r) for r in again])  # ids that are in it already: nothing changes
        for currency in PER_USD:
            assert ledger.groups(currency=currency) == [Group({}, expected(records, currency))]
        for by in (("model",), ("key", "day"), ("organisation", "tier"), GROUPS):
            assert total(ledger.groups(by)) == expected(records, "USD")
        for group in ledger.groups(("organisation", "key"), currency="DZD"):
            own = [r for r in records if {"organisation": r.organisation, "key": r.caller} == group.by]
            assert group.sums == expected(own, "DZD")
        acme = [r for r in records if r.organisation == "org_1"]
        assert ledger.groups(organisation="org_1")[0].sums == expected(acme, "USD")
        middle = date(2026, 11, 22)
        days = {group.by["day"]: group.sums for group in ledger.groups(("day",))}
        assert ledger.groups(first_day=middle, last_day=middle)[0].sums == days["2026-11-22"]
        assert ledger.groups(first_day=middle)[0].sums == days["2026-11-22"] + days["2026-11-23"] + days.get(
            "2026-11-24", Sums()
        )
        assert ledger.currencies() == ["CNY", "DZD", "USD"]


def test_the_first_line_for_a_request_stands(where: str) -> None:
    first, again = record(completion_tokens=0), record(completion_tokens=100)
    with opened(where) as ledger:
        ledger.add([line(first), line(again)])
        ledger.add([line(again)])
        assert ledger.groups(currency="DZD") == [Group({}, expected([first], "DZD"))]


def test_an_empty_ledger(where: str) -> None:
    with opened(where) as ledger:
        assert ledger.groups() == [Group({}, Sums())]
        assert ledger.groups(("model",)) == []
        ledger.add([])


def test_a_line_holds_the_whole_record(where: str) -> None:
    usage = record(reasoning_tokens=7, prompt_tokens=600_000, cached_tokens=500, service_tier="priority", ttft_s=None)
    with opened(where) as ledger, metered(ledger) as meter:
        charge = meter.settle(usage)
    engine = open_database(where, read_only=True)
    with engine.connect() as connection:
        (row,) = connection.execute(select(lines)).mappings()
        assert {name: row[name] for name in vars(usage)} == vars(usage)
        assert (row["day"], row["tier"], row["discount"]) == (date(2026, 11, 21), "long", 5000)
        assert (row["usd_micro"], row["list_usd_micro"]) == (charge.usd_micro, charge.list_usd_micro)
        assert (row["list_usd_micro"], row["usd_micro"]) == (1_080_000, 540_000)
        others = connection.execute(select(amounts.c.currency, amounts.c.micro)).all()
        assert dict(map(tuple, others)) | {"USD": charge.usd_micro} == charge.amounts  # type: ignore[arg-type]
        kept = connection.execute(select(prices.c.content).where(prices.c.price_version == charge.price_version))
        assert json.loads(kept.scalar_one()) == json.loads(DEFAULT_PRICES.content)
    engine.dispose()


def test_lines_without_an_amount_in_a_currency_are_counted(where: str) -> None:
    with opened(where) as ledger:
        with metered(ledger, PriceTable(DEFAULT_PRICES.rows)) as meter:
            meter.settle(record("before"))
        with metered(ledger) as meter:
            meter.settle(record("after"))
        (dzd,) = ledger.groups(currency="DZD")
        assert (dzd.sums.requests, dzd.sums.amount_micro, dzd.sums.unconverted) == (2, 420 * 350, 1)
        assert ledger.groups()[0].sums.unconverted == 0


@pytest.mark.parametrize("table", ["ledger_lines", "ledger_amounts", "ledger_prices"])
def test_the_database_refuses_to_change_a_line(where: str, table: str) -> None:
    with opened(where) as ledger:
        ledger.add([line(record())])
    column = {"ledger_lines": "usd_micro", "ledger_amounts": "micro", "ledger_prices": "content"}[table]
    engine = create_engine(
        where.replace("postgresql://", "postgresql+psycopg://") if "://" in where else f"sqlite:///{where}"
    )
    for statement in (f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}"):
        with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
            connection.execute(text(statement))
    engine.dispose()


@contextmanager
def settling(where: str, prefix: str, count: int) -> Iterator[subprocess.Popen[str]]:
    command = [*PROCESS, where, prefix, str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            yield process
        finally:
            process.kill()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_kill_9_loses_nothing_that_was_settled(where: str) -> None:
    with settling(where, "r", 0) as process:
        go(process)
        assert process.stdout is not None
        settled = {process.stdout.readline().strip() for _ in range(100)}
        process.kill()
        # What it had printed by then; the last line may be half a line.
        settled |= {printed.strip() for printed in process.stdout if printed.endswith("\n")}
    with opened(where):
        found = ids(where)
    assert len(settled) >= 100
    assert settled <= found
    assert len(found - settled) <= THREADS  # committed, but killed before saying so


def test_a_new_ledger_opened_by_many_at_once_is_laid_out_once(where: str) -> None:
    together = Barrier(8)

    def open_and_add(number: int) -> None:
        together.wait(10)
        with opened(where) as ledger:
            ledger.add([line(record(f"r{number}"))])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(open_and_add, range(8)))
    assert ids(where) == {f"r{number}" for number in range(8)}


def test_two_processes_write_one_sqlite_file(tmp_path: Path) -> None:
    where = str(tmp_path / "ledger.db")
    with settling(where, "a", 200) as a, settling(where, "b", 200) as b:
        for process in (a, b):
            go(process)
        printed = [set(process.communicate(timeout=60)[0].split()) for process in (a, b)]
        assert (a.returncode, b.returncode) == (0, 0)
    assert ids(where) == printed[0] | printed[1] == {f"{p}_{n}" for p in "ab" for n in range(200)}


def test_lines_that_wait_together_are_committed_together(where: str) -> None:
    with (
        closing(SlowLedger(open_database(where))) as ledger,
        metered(ledger) as meter,
        ThreadPoolExecutor(40) as pool,
    ):
        first = pool.submit(meter.settle, record("first"))
        wait_for(lambda: not meter.waiting)
        others = [pool.submit(meter.settle, record(f"r{n}")) for n in range(39)]
        wait_for(lambda: meter.waiting == 39)
        ledger.go.set()
        assert {f.result(10).usd_micro for f in (first, *others)} == {420}
        assert ledger.batches == [1, 39]
        assert ledger.groups()[0].sums.requests == 40


def test_one_line_that_cannot_be_stored_does_not_hold_up_the_others(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        closing(SlowLedger(open_database(where))) as ledger,
        metered(ledger) as meter,
        ThreadPoolExecutor(8) as pool,
    ):
        first = pool.submit(meter.settle, record("first"))
        wait_for(lambda: not meter.waiting)
        bad = pool.submit(meter.settle, record("bad", endpoint="\ud800"))
        good = [pool.submit(meter.settle, record(f"r{n}")) for n in range(5)]
        wait_for(lambda: meter.waiting == 6)
        ledger.go.set()
        for future in (first, *good):
            future.result(10)
        with pytest.raises(LedgerError, match="surrogates"):
            bad.result(10)
    assert ids(where) == {"first", *(f"r{n}" for n in range(5))}
    assert [usage.request_id for usage in logged(caplog)] == ["bad"]


LOGGED = "not in the ledger yet: "


def logged(caplog: pytest.LogCaptureFixture) -> list[UsageRecord]:
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    return [UsageRecord(**json.loads(message.removeprefix(LOGGED))) for message in messages]


def test_lines_wait_for_a_locked_ledger_and_answers_do_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    where = str(tmp_path / "ledger.db")
    with opened(where) as ledger, metered(ledger, wait_seconds=0.2) as meter:
        meter.settle(record("before"))
        with closing(sqlite3.connect(where, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            for request_id in ("first", "second"):
                with pytest.raises(LedgerError, match=f"request {request_id} waits for it"):
                    meter.settle(record(request_id))
            assert ids(where) == {"before"}
            other.execute("ROLLBACK")
        wait_for(lambda: ids(where) == {"before", "first", "second"})
        assert logged(caplog) == [record("first"), record("second")]
        ledger.add([line(usage) for usage in logged(caplog)])  # entered by hand as well: nothing is charged twice
        wait_for(lambda: not meter.waiting)
        assert meter.settle(record("after")).usd_micro == 420
        assert ledger.groups()[0].sums.requests == 4


@contextmanager
def without_lines(where: str) -> Iterator[None]:
    """The table of lines is elsewhere for a while."""
    with closing(sqlite3.connect(where, timeout=10)) as other:
        other.execute("ALTER TABLE ledger_lines RENAME TO elsewhere")
        try:
            yield
        finally:
            other.execute("ALTER TABLE elsewhere RENAME TO ledger_lines")


def test_a_failed_transaction_is_tried_again(tmp_path: Path) -> None:
    where = str(tmp_path / "ledger.db")
    with opened(where) as ledger, metered(ledger, wait_seconds=0.1) as meter:
        with without_lines(where), pytest.raises(LedgerError, match="waits for it"):
            meter.settle(record("late"))
        wait_for(lambda: "late" in ids(where))


def test_closing_gives_up_on_a_ledger_that_stays_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    where = str(tmp_path / "ledger.db")
    with opened(where) as ledger, without_lines(where):
        with metered(ledger, wait_seconds=0.1) as meter, pytest.raises(LedgerError, match="waits for it"):
            meter.settle(record("lost"))
        assert logged(caplog) == [record("lost")]
    assert ids(where) == set()


def test_lost_connections_to_postgresql_are_made_again(postgres: str) -> None:
    with new_database(postgres) as url, opened(url) as ledger, metered(ledger) as meter:
        meter.settle(record("before"))
        with psycopg.connect(postgres, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'ledger_%'")
        meter.settle(record("after"))
        assert ids(url) == {"before", "after"}


def test_what_is_committed_is_on_the_disk(tmp_path: Path) -> None:
    engine = open_database(str(tmp_path / "ledger.db"))
    with engine.connect() as connection:
        settings = [connection.execute(text(f"PRAGMA {n}")).scalar_one() for n in ("journal_mode", "synchronous")]
    engine.dispose()
    assert settings == ["wal", 2]  # 2: FULL, the log is synchronised at each commit


def test_a_closed_meter_and_impossible_usage_are_refused(tmp_path: Path) -> None:
    with opened(str(tmp_path / "ledger.db")) as ledger:
        with metered(ledger) as meter, pytest.raises(PriceError, match="cached of"):
            meter.settle(record(cached_tokens=2000))
        meter.close()
        with pytest.raises(LedgerError, match="has been closed"):
            meter.settle(record())
        assert ledger.groups()[0].sums.requests == 0


def test_a_write_ahead_log_cut_short_loses_only_its_end(tmp_path: Path) -> None:
    whole, torn = tmp_path / "ledger.db", tmp_path / "torn.db"
    with opened(str(whole)) as ledger:
        for number in range(5):
            ledger.add([line(record(f"r{number}"))])
        shutil.copy(whole, torn)
        log = (tmp_path / "ledger.db-wal").read_bytes()
    (tmp_path / "torn.db-wal").write_bytes(log[:-100])
    with opened(str(torn)) as ledger:
        assert ids(str(torn)) == {f"r{n}" for n in range(4)}
        ledger.add([line(record("r4"))])
    assert len(ids(str(torn))) == 5


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with opened(str(path)) as ledger:
        ledger.add([line(record(f"r{number}")) for number in range(200)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(LedgerError, match=r"ledger\.db.*(malformed|damaged)"):
        Ledger.open(str(path))


def test_strange_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    notes, other = tmp_path / "notes.txt", tmp_path / "other.db"
    notes.write_text("these are notes, and more than a hundred bytes of them, so that they could be a header " * 9)
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
        connection.commit()
    for path, words in ((notes, "file is not a database"), (other, "not a ledger: it has the table recipes")):
        before = path.read_bytes()
        for read_only in (False, True):
            with pytest.raises(LedgerError, match=words):
                Ledger.open(str(path), read_only=read_only)
        assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [notes, other]


def test_another_version_is_refused(where: str) -> None:
    Ledger.open(where).close()
    engine = open_database(where)
    with engine.begin() as connection:
        connection.execute(text("UPDATE ledger_meta SET value = '7'"))
    engine.dispose()
    with pytest.raises(LedgerError, match="has schema version 7; this version of Longsight reads 1"):
        Ledger.open(where)


def test_a_ledger_without_one_of_its_tables_is_refused(where: str) -> None:
    Ledger.open(where).close()
    engine = open_database(where)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE ledger_amounts"))
    engine.dispose()
    with pytest.raises(LedgerError, match="lacks the table ledger_amounts"):
        Ledger.open(where)


def test_postgresql_tables_of_others_are_no_concern_but_ours_without_a_version_are(postgres: str) -> None:
    with new_database(postgres) as url:
        engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE recipes (name TEXT)"))
        Ledger.open(url).close()
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE ledger_meta"))
        engine.dispose()
        with pytest.raises(LedgerError, match="not a ledger"):
            Ledger.open(url)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("no/such/directory/ledger.db", "there is no directory no/such/directory"),
        ("sqlite://", "in memory would be lost"),
        ("mysql://localhost/ledger", "begins with mysql"),
        ("nonsense://x", "begins with nonsense|cannot be read"),
        ("postgresql://user:secret@127.0.0.1:1/ledger", "127.0.0.1"),
    ],
)
def test_what_cannot_be_a_ledger(where: str, words: str) -> None:
    with pytest.raises(LedgerError, match=words) as caught:
        Ledger.open(where)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reading_needs_a_ledger_that_is_there_and_changes_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "ledger.db")
    with pytest.raises(LedgerError, match="there is no ledger"):
        Ledger.open(path, read_only=True)
    Ledger.open(path).close()
    with opened(path, read_only=True) as ledger, pytest.raises(LedgerError, match="readonly"):
        ledger.add([line(record())])
