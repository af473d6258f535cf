"""A checkpoint's own sampling defaults, and a cache that the machine has no room for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fake_model import FakeModel
from longsight.engine import Engine, EngineConfigError, SamplingDefaults
from longsight.engine.memory import available_bytes
from longsight.model import ConfigError


def write(directory: Path, config: Any) -> Path:
    (directory / "generation_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return directory


def test_without_a_file_the_protocols_own(tmp_path: Path) -> None:
    assert SamplingDefaults.from_checkpoint(tmp_path) == SamplingDefaults(1.0, 1.0, 0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"temperature": 0.7, "top_p": 0.95, "top_k": 40, "eos_token_id": 5}, SamplingDefaults(0.7, 0.95, 40)),
        ({"temperature": None, "top_p": 0.9}, SamplingDefaults(1.0, 0.9, 0)),
        ({"do_sample": False, "temperature": 0.7}, SamplingDefaults(0.0, 1.0, 0)),
        ({"do_sample": True}, SamplingDefaults()),
        ({"max_new_tokens": 900}, SamplingDefaults(max_new_tokens=900)),
    ],
)
def test_what_the_checkpoint_says(tmp_path: Path, config: Any, expected: SamplingDefaults) -> None:
    assert SamplingDefaults.from_checkpoint(write(tmp_path, config)) == expected


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"temperature": 9}, "temperature is 9"),
        ({"top_p": "a lot"}, "generation_config.json"),
        ({"top_k": -2}, "top_k"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be an integer of at least 1"),
        ({"max_new_tokens": "many"}, "max_new_tokens is 'many'"),
    ],
)
def test_what_makes_no_sense(tmp_path: Path, config: Any, words: str) -> None:
    with pytest.raises(EngineConfigError, match=words):
        SamplingDefaults.from_checkpoint(write(tmp_path, config))
    with pytest.raises(ConfigError, match="not valid JSON"):
        SamplingDefaults.from_checkpoint(write(tmp_path, "{"))


def test_how_long_an_answer_may_be_that_names_no_limit() -> None:
    assert SamplingDefaults(max_new_tokens=900).chat_tokens(1 << 20, built_in=True) == 900
    assert SamplingDefaults().chat_tokens(1 << 20, built_in=True) == 4096
    assert [SamplingDefaults().chat_tokens(n) for n in (1000, 1 << 16, 1 << 21)] == [4096, 8192, 131_072]


def test_a_cache_that_cannot_be_allocated() -> None:
    class Greedy(FakeModel):
        def allocate_cache(self, pages: int, *, screened: bool = False) -> Any:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory")

    page = FakeModel().config.page_bytes()
    with pytest.raises(EngineConfigError, match="no memory for 10 pages of the cache: can't allocate") as caught:
        Engine(Greedy(), kv_bytes=10 * page)  # type: ignore[arg-type]
    message = str(caught.value)
    assert f"can't allocate {10 * page} bytes" in message
    assert "lower kv_bytes (--kv-memory) or max_model_len (--max-model-len)" in message
    assert ".cpp" not in message


def test_a_table_that_cannot_be_allocated() -> None:
    with pytest.raises(EngineConfigError, match=r"of 9007199254740992 requests at once.*lower max_running"):
        Engine(FakeModel(), kv_bytes=10**4, max_running=2**53)  # type: ignore[arg-type]


def test_free_memory_is_between_nothing_and_everything() -> None:
    assert 2**20 < available_bytes() < 2**50
