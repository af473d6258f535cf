"""Our forward pass against transformers': same blocks, same logits, however the tokens are cut into steps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
from longsight.model import Model, load_model
from longsight.model.decoder import Weights
from longsight.model.moe import Router
from longsight.ops import supports
from longsight.ops.backends import Backend
from paged_run import PagedRun, chunks

TOLERANCE = 5e-5  # fp32 logits of rms about 1.4
MAIN = "cpu" if supports("cpu") is None else "reference"

# name -> (config, tokens): tokens are several times topk * block, off the block grid.
GEOMETRIES: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({}, 301),
    "one group of 16, whole heads rotated, index wider than the head": (
        {
            "layers": "sss",
            "mlps": "mdm",
            "heads": 16,
            "kv_heads": 1,
            "head_dim": 16,
            "rotary_dim": 16,
            "index_dim": 64,
            "topk": 2,
            "experts": 5,
            "experts_per_token": 1,
        },
        203,
    ),
    "the published head shape": (
        {
            "layers": "fss",
            "mlps": "dmm",
            "heads": 32,
            "head_dim": 128,
            "rotary_dim": 64,
            "index_dim": 128,
            "block": 128,
            "topk": 2,
        },
        700,
    ),
    "groups of one, two local blocks, index narrower than the head": (
        {
            "heads": 4,
            "kv_heads": 4,
            "head_dim": 64,
            "rotary_dim": 32,
            "index_dim": 48,
            "block": 32,
            "topk": 4,
            "local": 2,
        },
        497,
    ),
    "blocks of 48, k 16, a quarter rotated, many experts": (
        {
            "layers": "sfs",
            "mlps": "mmd",
            "heads": 6,
            "kv_heads": 3,
            "head_dim": 96,
            "rotary_dim": 24,
            "index_dim": 80,
            "block": 48,
            "topk": 16,
            "experts": 16,
            "experts_per_token": 4,
        },
        1700,
    ),
    "two dense layers first, odd vocabulary, every expert chosen": (
        {
            "layers": "ffsss",
            "mlps": "ddmmm",
            "vocab": 301,
            "hidden": 80,
            "heads": 6,
            "head_dim": 48,
            "rotary_dim": 12,
            "index_dim": 16,
            "topk": 5,
            "experts": 3,
            "experts_per_token": 3,
        },
        322,
    ),
}
CASES = [(MAIN, name) for name in GEOMETRIES] + ([("reference", "plain")] if MAIN != "reference" else [])


@dataclass
class Truth:
    """A saved checkpoint, a text, and what transformers makes of it."""

    path: Path
    tokens: Tensor
    logits: Tensor
    choices: oracle.Choices


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(name: str) -> Truth:
        config, length = GEOMETRIES[name]
        network = oracle.build(oracle.text_config(**config))
        tokens = random_tokens(length, seed=1)
        path = oracle.save(network, tmp_path_factory.mktemp("checkpoint"))
        return Truth(path, tokens, *oracle.run(network, tokens))

    return make


def random_tokens(length: int, seed: int) -> Tensor:
    return torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}: {case[1]}")
def case(request: pytest.FixtureRequest, truth: Any) -> tuple[Model, Truth]:
    backend, name = request.param
    expected = truth(name)
    return load_model(expected.path, backend=backend), expected


def assert_equal(run: PagedRun, expected: Truth) -> None:
    """Block sets first: one flipped block explains any difference of logits."""
    rows = run.done[0]
    for layer, blocks in expected.choices.blocks.items():
        assert torch.equal(run.blocks(layer), blocks[:rows])
    assert len(expected.choices.blocks) == run.model.config.attention_kinds.count("sparse")
    assert float((run.logits() - expected.logits[:rows]).abs().max()) <= TOLERANCE


def test_the_cases_prove_something(case: tuple[Model, Truth]) -> None:
    model, expected = case
    config = model.config
    assert expected.tokens.shape[0] > 2 * config.topk_blocks * config.block_size
    assert 1.0 < float(expected.logits.square().mean().sqrt()) < 2.0
    for blocks in expected.choices.blocks.values():
        visible = torch.arange(blocks.shape[0]) // config.block_size + 1
        assert torch.equal((blocks >= 0).sum(-1).amax(-1), visible.clamp(max=config.topk_blocks))
        newest = visible[:, None, None] - config.topk_blocks + torch.arange(config.topk_blocks)
        assert bool((blocks != newest)[visible > config.topk_blocks].any()), "selection is only the newest blocks"
        assert config.num_kv_heads == 1 or bool((blocks[:, 0] != blocks[:, 1]).any()), "groups never differ"


def test_prefill_in_one_step(case: tuple[Model, Truth]) -> None:
    model, expected = case
    run = PagedRun(model, [expected.tokens])
    run.step(expected.tokens.shape[0])
    assert_equal(run, expected)


def test_prefill_in_odd_chunks(case: tuple[Model, Truth]) -> None:
    model, expected = case
    run = PagedRun(model, [expected.tokens], seed=1)
    for size in chunks(expected.tokens.shape[0], (1, 37, 16, 100, 5)):
        run.step(size)
    assert_equal(run, expected)


def test_token_by_token(case: tuple[Model, Truth]) -> None:
    model, expected = case
    run = PagedRun(model, [expected.tokens], seed=2)
    # Python loops make the reference slow: enough tokens to be far beyond topk * block = 48.
    for _ in range(expected.tokens.shape[0] if model.backend.NAME != "reference" else 120):
        run.step(1)
    assert_equal(run, expected)


def test_two_sequences_in_one_batch(case: tuple[Model, Truth]) -> None:
    """The companion is half as long; it starts later, moves in other chunks and is done earlier."""
    model, expected = case
    length = expected.tokens.shape[0]
    companion = random_tokens(length // 2, seed=2)
    alone = PagedRun(model, [companion])
    alone.step(companion.shape[0])
    run = PagedRun(model, [expected.tokens, companion], seed=3)
    run.step(50, 0)
    for counts in zip_longest(chunks(length - 50, (61, 1, 90)), chunks(length // 2, (70, 1, 64)), fillvalue=0):
        run.step(*counts)
    assert run.done == [length, length // 2]
    assert_equal(run, expected)
    for layer in expected.choices.blocks:
        assert torch.equal(run.blocks(layer, 1), alone.blocks(layer))
    assert float((run.logits(1) - alone.logits()).abs().max()) <= TOLERANCE


def test_the_same_bits_however_the_text_is_cut(case: tuple[Model, Truth]) -> None:
    """On the CPU kernels chunking, decoding, company and threads change no bit of any logit."""
    model, expected = case
    if model.backend.NAME != "cpu":
        return  # the reference sums through torch's matmul, whose order depends on the shapes
    length = expected.tokens.shape[0]
    whole = PagedRun(model, [expected.tokens])
    whole.step(length)
    companion = random_tokens(length, seed=4)
    threads = torch.get_num_threads()
    for plan, used in (((37, 1, 64), 1), ((1,), 2), ((200, 3), 2)):
        torch.set_num_threads(used)
        run = PagedRun(model, [expected.tokens, companion], seed=used)
        for size in chunks(length, plan):
            run.step(size, size)
        assert torch.equal(run.logits(), whole.logits())
    torch.set_num_threads(threads)


def test_published_tensor_names(tmp_path: Path) -> None:
    """The vision-language class writes the published layout: unfused names, vision tensors beside the text model's."""
    network = oracle.build_vision(oracle.text_config())
    tokens = random_tokens(200, seed=4)
    logits, choices = oracle.run(network, tokens)
    model = load_model(oracle.save(network, tmp_path), backend=MAIN)
    run = PagedRun(model, [tokens])
    run.step(200)
    assert_equal(run, Truth(tmp_path, tokens, logits, choices))


@pytest.mark.parametrize("name", ["plain", "the published head shape"])
def test_bf16_is_as_close_as_transformers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against fp32 on the same bf16 weights, with the blocks and experts of the fp32 run forced on both: a flip of
    either moves logits by more than all rounding together."""
    config, length = GEOMETRIES[name]
    low = oracle.to_dtype(oracle.build(oracle.text_config(**config)), torch.bfloat16)
    tokens = random_tokens(length, seed=1)
    expected, choices = oracle.run(oracle.to_dtype(low, torch.float32), tokens)
    theirs, _ = oracle.run(low, tokens, force=choices)
    model = load_model(oracle.save(low, tmp_path), backend=MAIN)
    assert model.dtype == torch.bfloat16
    ours = forced_run(model, tokens, choices, monkeypatch)
    error, their_error = (ours - expected).abs(), (theirs - expected).abs()
    assert 0 < float(error.square().mean()) <= 1.5**2 * float(their_error.square().mean())
    assert float(error.max()) <= 1.5 * float(their_error.max())


def forced_run(model: Model, tokens: Tensor, choices: oracle.Choices, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """One prefill with given blocks and experts."""
    weights: Weights = model._weights
    experts = {id(weights.layers[i].mlp.router): ids for i, ids in choices.experts.items()}  # type: ignore[union-attr]

    def route(router: Router, x: Tensor, backend: Backend) -> tuple[Tensor, Tensor]:
        chosen = experts[id(router)].contiguous()
        scores = backend.linear(x.float(), router.weight).sigmoid().gather(1, chosen)
        return chosen, scores * (router.scale / scores.sum(-1, keepdim=True))

    monkeypatch.setattr(Router, "__call__", route)
    run = PagedRun(model, [tokens])
    batch, step_tokens, _ = run.next_batch([tokens.shape[0]])
    return model.forward(step_tokens, batch, run.cache, on_select=lambda layer, _ids: choices.blocks[layer])
