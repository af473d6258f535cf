"""The OpenAPI document: valid, complete, and held against the server by random requests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis

from fake_model import FakeModel
from live_server import LiveServer, live_server
from longsight.server.file_store import FileStore
from longsight.server.metering.ledger import Ledger
from longsight.server.metering.meter import LedgerMeter
from longsight.server.metering.prices import DEFAULT_PRICES
from longsight.server.openapi_routes import OPERATIONS
from longsight.server.usage import UsageRecord

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


GENERATING = {
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/anthropic/v1/messages",
    "/v1/longsight/microscope",
}


@pytest.fixture
def answered() -> list[UsageRecord]:
    """Of the requests that were not refused."""
    return []


@pytest.fixture
def server(tmp_path: Path, answered: list[UsageRecord]) -> Iterator[LiveServer]:
    """With everything that has routes: files, and a ledger. Answers are short."""
    with FileStore(tmp_path / "files") as files, closing(Ledger.open(str(tmp_path / "ledger.db"))) as ledger:
        meter = LedgerMeter(DEFAULT_PRICES, ledger)
        with live_server(
            FakeModel(), files=files, meter=meter, observers=[answered.append], chat_max_tokens=4
        ) as server:
            yield server


def document(server: LiveServer) -> Any:
    return httpx.get(f"{server.url}/openapi.json").raise_for_status().json()


def test_the_document_is_valid(server: LiveServer) -> None:
    schemathesis.openapi.from_dict(document(server)).validate()


def test_every_operation_is_described(server: LiveServer) -> None:
    """No route without its entry, and no entry without its route."""
    paths = document(server)["paths"]
    assert {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods} == set(OPERATIONS)


def test_random_requests_find_nothing_that_the_document_does_not_say(
    server: LiveServer, answered: list[UsageRecord], tmp_path: Path
) -> None:
    command = [
        *(Path(sys.executable).with_name("st"), "run", f"{server.url}/openapi.json"),
        *("--phases", "examples,coverage,fuzzing,stateful", "--mode", "all", "--max-examples", "12"),
        *("--checks", ",".join(CHECKS)),
        *("--generation-deterministic", "--no-color"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    server.wait_until_idle()
    assert {record.endpoint for record in answered if record.status == "ok"} == GENERATING
