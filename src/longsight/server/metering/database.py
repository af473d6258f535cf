"""Opening a ledger's database: SQLite in a file, or PostgreSQL by URL; a new one is laid out, a strange one refused."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, insert, inspect, make_url, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from longsight.extras import install_command
from longsight.server.metering.errors import LedgerError
from longsight.server.metering.tables import SCHEMA_VERSION, meta, metadata

BUSY_SECONDS = 10.0
_VERSION = "schema_version"
# Two servers that lay out the same new PostgreSQL database take turns.
_LOCK = 0x4C65_6467


def open_database(where: str, *, read_only: bool = False) -> Engine:
    """where: a file's path, or a URL of SQLAlchemy's, "postgresql://..." or "sqlite:///...".

    SQLite commits are on the disk when they return (WAL, synchronous=FULL). Raises LedgerError, naming `where` without
    its password, for what cannot be reached, is damaged, isn't a ledger, or is one of another version.
    """
    url = _url(where)
    name = url.render_as_string(hide_password=True) if url.get_backend_name() != "sqlite" else str(url.database)
    try:
        engine = _sqlite(url, read_only) if url.get_backend_name() == "sqlite" else _postgres(url)
    except ModuleNotFoundError as error:
        raise LedgerError(
            f"the ledger {name} needs {error.name}, which is not installed; try: {install_command('postgres')}"
        ) from error
    try:
        with engine.begin() as connection:
            _check(connection, name, read_only)
        if engine.dialect.name == "sqlite" and not read_only:
            _write_ahead(engine)
    except (SQLAlchemyError, sqlite3.Error) as error:
        engine.dispose()
        raise LedgerError(f"the ledger {name} cannot be opened: {reason(error)}") from error
    except LedgerError:
        engine.dispose()
        raise
    return engine


def reason(error: Exception) -> str:
    """The driver's own words, in one line: SQLAlchemy's show the statement and its parameters."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def _url(where: str) -> URL:
    if "://" not in where:
        return URL.create("sqlite", database=str(Path(where).expanduser()))
    try:
        url = make_url(where)
        backend = url.get_backend_name()
    except SQLAlchemyError as error:
        # The text may hold a password, so it isn't repeated.
        raise LedgerError("the ledger's URL cannot be read; write postgresql://USER@HOST/DATABASE") from error
    if backend == "sqlite" and url.database in (None, "", ":memory:"):
        raise LedgerError("a ledger in memory would be lost; name a file")
    if backend not in ("sqlite", "postgresql"):
        raise LedgerError(f"the ledger's URL begins with {backend}; it can be a file, sqlite:/// or postgresql://")
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def _postgres(url: URL) -> Engine:
    return create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": int(BUSY_SECONDS)})


def _sqlite(url: URL, read_only: bool) -> Engine:
    path = Path(str(url.database))
    if read_only and not path.is_file():
        raise LedgerError(f"there is no ledger {path}")
    if not path.parent.is_dir():
        raise LedgerError(f"the ledger {path} cannot be opened: there is no directory {path.parent}")
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where `begin` says so, not where the driver guesses
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        if read_only:
            cursor.execute("PRAGMA query_only = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


def _write_ahead(engine: Engine) -> None:
    """Switch the file to a write-ahead log, which stays. Only now: a file that is no ledger is left as it was."""
    deadline = time.monotonic() + BUSY_SECONDS
    connection = engine.raw_connection()
    try:
        while True:
            try:
                connection.cursor().execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                # Needs the file for itself for a moment; SQLite doesn't always wait for that.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
    finally:
        connection.close()


def _check(connection: Connection, name: str, read_only: bool) -> None:
    sqlite = connection.dialect.name == "sqlite"
    if sqlite and not read_only:
        found = connection.execute(text("PRAGMA quick_check(1)")).scalar_one()
        if found != "ok":
            raise LedgerError(f"the ledger {name} is damaged: {found}")
        # A transaction that only reads cannot always turn into one that writes; one that has written can.
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    elif not sqlite:
        connection.execute(select(text(f"pg_advisory_xact_lock({_LOCK})")))
    present = set(inspect(connection).get_table_names())
    if meta.name in present:
        version = connection.execute(select(meta.c.value).where(meta.c.name == _VERSION)).scalar_one_or_none()
        if version != str(SCHEMA_VERSION):
            raise LedgerError(
                f"the ledger {name} has schema version {version}; this version of Longsight reads {SCHEMA_VERSION}"
            )
        missing = metadata.tables.keys() - present
        if missing:
            raise LedgerError(f"the ledger {name} lacks the table {min(missing)}")
        return
    # A PostgreSQL database may well have other tables beside ours; a SQLite file is one application's.
    strange = present if sqlite else present & metadata.tables.keys()
    if strange:
        raise LedgerError(f"{name} is not a ledger: it has the table {min(strange)}, but no {meta.name}")
    if read_only:
        raise LedgerError(f"{name} is not a ledger: it has no {meta.name}")
    metadata.create_all(connection)
    connection.execute(insert(meta).values(name=_VERSION, value=str(SCHEMA_VERSION)))
