"""The engine over a real network with sparse layers: chunks, neighbours and page reuse change no token and no block.

Prompts are several times topk * block long, or sparse attention would be dense attention.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest
import torch

from longsight.engine import Engine, Request, SamplingParams, Selection, StepStats
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


def test_a_prefix_hit_changes_nothing_wherever_it_ends(model: Model) -> None:
    e = make_engine(model)
    e.speculate = False
    list(e.generate(request(PROMPT, 9)))
    rng = random.Random(2)
    for cut in (len(PROMPT) - 1, 3 * TOPK * BLOCK + 1, 2 * BLOCK - 1, TOPK * BLOCK, 5):
        prompt = PROMPT[:cut] + rng.choices(range(256), k=TOPK * BLOCK + 3)
        hit = request(prompt, 7, record=True)
        list(e.generate(hit))
        cold = alone(model, prompt, 7)
        assert hit.cached_tokens == cut, "the hit should end mid-page, exactly where the texts part"
        assert hit.output == cold.output
        assert hit.selections == cold.selections
    assert e.pages.used == 0


def test_the_next_turn_of_a_conversation_reads_only_what_is_new(model: Model) -> None:
    e = make_engine(model)
    first = request(PROMPT, 20)
    list(e.generate(first))
    prompt = [*PROMPT, *first.output, *b"and then?"]
    second = request(prompt, 8, record=True)
    list(e.generate(second))
    assert second.cached_tokens == len(PROMPT) + 19
    cold = alone(model, prompt, 8)
    assert (second.output, second.selections) == (cold.output, cold.selections)


@pytest.mark.parametrize("seed", range(4))
def test_any_schedule_gives_each_request_its_own_answer(model: Model, seed: int) -> None:
    """Shared prefixes, a pool too small for all, preemption, eviction, drafts, cancels, random chunks and threads."""
    rng = random.Random(seed)
    threads = torch.get_num_threads()
    phrase = rng.choices(range(256), k=12)
    e = make_engine(model, kv_bytes=30 * CONFIG.page_bytes(), chunk_tokens=rng.choice([16, 40, 64]), max_running=4)
    requests = []
    for _ in range(10):
        prompt = (
            PROMPT[: rng.randint(1, 200)] + phrase * rng.randint(0, 5) + rng.choices(range(256), k=rng.randint(1, 60))
        )
        requests.append(request(prompt, rng.randint(1, 25)))
    cancelled = rng.choice(requests)
    waiting = list(requests)
    try:
        while waiting or e.has_work:
            if waiting and rng.random() < 0.4:
                e.add(waiting.pop())
            torch.set_num_threads(rng.choice([1, threads]))
            e.step()
            if cancelled not in waiting and rng.random() < 0.02:
                e.cancel(cancelled)
            if rng.random() < 0.05:
                e.scheduler.chunk_tokens = rng.choice([7, 16, 64])
    finally:
        torch.set_num_threads(threads)
    assert e.pages.used == 0
    for r in requests:
        if r.finish_reason != "cancelled":
            assert r.output == alone(model, list(r.prompt), r.params.max_tokens).output


def test_preempted_requests_lose_nothing(model: Model) -> None:
    e = make_engine(model, kv_bytes=(2 * len(PROMPT) // BLOCK + 3) * CONFIG.page_bytes(), prefix_cache=False)
    other = PROMPT[7:]
    requests = [request(PROMPT, 40), request(other, 40)]
    for r in requests:
        e.add(r)
    while e.has_work:
        e.step()
    assert e.scheduler.preemptions > 0
    for r, prompt in zip(requests, (PROMPT, other), strict=True):
        assert r.output == alone(model, prompt, 40).output
    assert e.pages.used == 0


def test_guesses_change_no_sampled_answer(model: Model) -> None:
    """The same seed gives the same tokens and log-probabilities with and without them."""
    stats: list[StepStats] = []

    prompt = PROMPT[:100] * 3
    answers = []
    for speculate in (False, True):
        e = make_engine(model, speculate=speculate)
        e.on_step = stats.append
        r = Request(prompt, SamplingParams(max_tokens=60, temperature=0.7, seed=3, ignore_eos=True, logprobs=1))
        list(e.generate(r))
        answers.append((r.output, r.logprobs))
    assert answers[0] == answers[1]
    assert sum(s.drafted for s in stats) > 0
