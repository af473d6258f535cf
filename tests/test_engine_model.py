"""The engine over a real network with sparse layers: chunks, neighbours and page reuse change no token and no block.

Prompts are several times topk * block long, or sparse attention would be dense attention.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest
import torch

from longsight.engine import Engine, Request, SamplingParams, Selection
from longsight.model import Model, load_model
from longsight.ops import Batch, supports
from tiny_checkpoint import BLOCK, CONFIG, TOPK

BACKEND = "cpu" if supports("cpu") is None else "reference"
PROMPT = random.Random(0).choices(range(256), k=4 * TOPK * BLOCK + 5)


@cache
def load(path: Path) -> Model:
    return load_model(path, backend=BACKEND)


@pytest.fixture
def model(tiny_checkpoint: Path) -> Model:
    return load(tiny_checkpoint)


def make_engine(model: Model, **options: int) -> Engine:
    return Engine(model, **{"kv_bytes": 60 * CONFIG.page_bytes(), "chunk_tokens": 64, "max_running": 4, **options})


def request(prompt: list[int], tokens: int = 12, *, record: bool = False) -> Request:
    return Request(prompt, SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True), record)


def alone(model: Model, prompt: list[int], tokens: int = 12, **options: int) -> Request:
    r = request(prompt, tokens, record=True)
    list(make_engine(model, **options).generate(r))
    return r


def whole_prefill(model: Model, tokens: list[int]) -> tuple[list[int], dict[int, torch.Tensor]]:
    """The best next token after each position, and each sparse layer's blocks, from one forward pass."""
    pages = -(-len(tokens) // BLOCK)
    chosen: dict[int, torch.Tensor] = {}
    logits = model.forward(
        torch.tensor(tokens),
        Batch.build([(len(tokens), len(tokens), list(range(pages)))]),
        model.allocate_cache(pages),
        on_select=lambda layer, ids: chosen.update({layer: ids.clone()}),
    )
    return logits.argmax(-1).tolist(), chosen


def test_answer_and_recorded_blocks_are_those_of_one_whole_prefill(model: Model) -> None:
    r = alone(model, PROMPT)
    tokens, chosen = whole_prefill(model, [*PROMPT, *r.output])
    first = len(PROMPT) - 1
    assert r.output == tokens[first : first + 12]
    expected = [
        Selection(i, layer, tuple(tuple(b for b in group if b >= 0) for group in chosen[layer][first + i].tolist()))
        for i in range(12)
        for layer in (1, 2)
    ]
    assert r.selections == expected
    assert all(len(group) == TOPK for s in r.selections for group in s.blocks)
    assert len({s.blocks for s in r.selections}) > 2, "the choice should vary, or this proves little"


@pytest.mark.parametrize("chunk", [1, 7, 16, 50, 500])
def test_the_chunk_size_changes_nothing(model: Model, chunk: int) -> None:
    reference, other = alone(model, PROMPT), alone(model, PROMPT, chunk_tokens=chunk)
    assert other.output == reference.output
    assert other.selections == reference.selections


def test_neighbours_and_reused_pages_change_nothing(model: Model) -> None:
    rng = random.Random(1)
    prompts = [rng.choices(range(256), k=rng.randint(1, 250)) for _ in range(9)]
    e = make_engine(model, kv_bytes=40 * CONFIG.page_bytes(), chunk_tokens=48, max_running=3)
    requests = [request(p, rng.randint(1, 20)) for p in prompts]
    for r in requests:
        e.add(r)
    steps = 0
    while e.has_work:
        e.step()
        steps += 1
        if steps == 5:
            e.cancel(requests[1])
    for r in requests:
        if r is not requests[1]:
            assert r.output == alone(model, list(r.prompt), r.params.max_tokens).output
    assert e.pages.used == 0


def test_memory_is_exactly_what_was_paid_for(model: Model) -> None:
    paid = 7 * CONFIG.page_bytes() + 100
    e = Engine(model, kv_bytes=paid)
    assert e.pages.total == 7
    assert sum(_layer_bytes(layer) for layer in e.runner.cache) == 7 * CONFIG.page_bytes()


def _layer_bytes(layer) -> int:  # type: ignore[no-untyped-def]
    return sum(t.nbytes for t in (layer.k, layer.v, layer.index_k) if t is not None)
