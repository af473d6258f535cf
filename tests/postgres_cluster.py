"""A PostgreSQL cluster for the tests: the one of LONGSIGHT_TEST_POSTGRES_URL, or one of their own on a Unix socket."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from live_server import wait_for

VARIABLE = "LONGSIGHT_TEST_POSTGRES_URL"


@contextmanager
def cluster() -> Iterator[str]:
    """The URL of a database whose user may create others. Skips the test if there is no server to be had."""
    if url := os.environ.get(VARIABLE):
        yield url
        return
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    path = found[-1] if found else shutil.which("initdb")
    if path is None:
        pytest.skip(f"PostgreSQL is not installed (no initdb) and {VARIABLE} is not set")
    with tempfile.TemporaryDirectory(prefix="longsight-pg-", dir="/tmp") as directory:
        yield from _own_cluster(Path(path).parent, Path(directory))


def _own_cluster(binaries: Path, directory: Path) -> Iterator[str]:
    run_as: dict[str, Any] = {"env": {"PATH": os.environ["PATH"], "LC_ALL": "C"}, "cwd": "/"}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = pwd.getpwnam("nobody")
        os.chown(directory, user.pw_uid, user.pw_gid)
        run_as |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    data = directory / "data"
    initdb = [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, timeout=60, **run_as)
    url = f"postgresql://postgres@/postgres?host={directory}"
    postgres = [binaries / "postgres", "-D", data, "-k", directory, "-c", "listen_addresses="]
    with subprocess.Popen(postgres, stderr=subprocess.DEVNULL, **run_as) as process:
        try:
            wait_for(lambda: _answers(url), 30)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def new_database(url: str) -> Iterator[str]:
    """The URL of an empty database in the cluster, dropped in the end."""
    name = f"ledger_{uuid.uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        try:
            yield make_url(url).set(database=name).render_as_string(hide_password=False)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
