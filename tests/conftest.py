"""Fixtures shared by the test files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import emulated_kernels
from live_server import LiveServer, live_server
from longsight.model.constructed import constructed_path
from tiny_checkpoint import write_tiny_checkpoint

if os.environ.get("LONGSIGHT_TEST_KERNELS") == "aarch64":
    emulated_kernels.install()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random fp32 checkpoint with full and sparse layers; 16-token blocks, 3 of them kept."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def constructed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The constructed checkpoint, in a cache directory of the tests' own (subprocesses find it there too)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield constructed_path()


@pytest.fixture
def server() -> Iterator[LiveServer]:
    """A server over the lookup stand-in; checks at the end that no page is missing."""
    with live_server() as server:
        yield server
