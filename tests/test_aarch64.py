"""The aarch64 kernels under emulation: as CMakeLists.txt builds them, and what tests/test_ops.py says of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

import emulated_kernels

pytestmark = pytest.mark.skipif(emulated_kernels.problem() is not None, reason=str(emulated_kernels.problem()))
# Each kernel of tests/test_ops.py in its smallest case: emulated arithmetic is slow.
SMALL = "selection and 4-2-1 or 16-1-1-16 or padding or append or experts or sums or likeliest or router"
TESTS = {"max": SMALL, "cortex-a53": "padding or append or sums"}


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    emulated_kernels.build()


@pytest.fixture
def baseline() -> Iterator[emulated_kernels.EmulatedLibrary]:
    """A processor of ARMv8.0: an instruction of a later one ends the emulated program."""
    library = emulated_kernels.EmulatedLibrary("cortex-a53")
    yield library
    library.close()


def test_what_a_processor_lacks_is_not_offered(baseline: emulated_kernels.EmulatedLibrary) -> None:
    assert [baseline.ls_usable_isa(i) for i in range(3)] == [b"neon", b"generic", None]
    assert baseline.ls_isa() == b"neon"
    assert baseline.ls_use_isa(b"neon_bf16") == 1


@pytest.mark.parametrize("processor", TESTS)
def test_operators(processor: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_ops.py", "-k", TESTS[processor]],
        cwd=emulated_kernels.ROOT,
        env=os.environ | {"LONGSIGHT_TEST_KERNELS": "aarch64", "LONGSIGHT_TEST_CPU": processor},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
