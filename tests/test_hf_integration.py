"""Stock MiniMax-M3 models of the transformers library with attn_implementation="longsight" against the same models run
eagerly: same blocks, same logits, however the tokens arrive. Prompts are several times topk * block tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, StaticCache
from transformers.models.llama import LlamaConfig, LlamaForCausalLM

import oracle
from longsight.hf import PagedCache
from longsight.hf.cache import PagedLayer
from longsight.hf.tables import PageTables
from longsight.ops import UnsupportedError
from oracle import cached

TOLERANCE = 5e-5  # fp32 logits of rms about 1.4
TOKENS = 203  # 4 times topk * block, off the block grid
CONFIG = oracle.text_config()


@pytest.fixture(scope="module")
def model() -> Any:
    return oracle.build(CONFIG)


@pytest.fixture
def ours(model: Any) -> Iterator[Any]:
    """The same object, switched over for one test."""
    model.set_attn_implementation("longsight")
    yield model
    model.set_attn_implementation("eager")


def prompt(n: int = TOKENS, seed: int = 0) -> Tensor:
    return torch.randint(3, CONFIG["vocab_size"], (n,), generator=torch.Generator().manual_seed(seed))


@contextmanager
def stock(model: Any) -> Iterator[Any]:
    model.set_attn_implementation("eager")
    yield model
    model.set_attn_implementation("longsight")


class Seen(dict[int, Tensor]):
    """Collects what every layer chose, step after step: layer -> int32 [T, H_kv, k]."""

    def __call__(self, layer: int, ids: Tensor) -> None:
        self[layer] = torch.cat((self[layer], ids)) if layer in self else ids


@torch.no_grad()
def logits(model: Any, tokens: Tensor, **kwargs: Any) -> Tensor:
    batch = tokens if tokens.ndim == 2 else tokens[None]
    found: Tensor = model(batch, **{"use_cache": False, **kwargs}).logits
    return found if tokens.ndim == 2 else found[0]


def in_steps(model: Any, tokens: Tensor, sizes: list[int], cache: Any, **kwargs: Any) -> Tensor:
    """Logits [T, V] of one sequence fed in pieces."""
    parts = [logits(model, piece, **cached(cache), **kwargs) for piece in tokens.split(sizes)]
    return torch.cat(parts)


def test_a_prefill_chooses_the_same_blocks_and_gives_the_same_logits(ours: Any) -> None:
    tokens, seen = prompt(), Seen()
    mine = logits(ours, tokens, on_select=seen)
    with stock(ours):
        theirs, made = oracle.run(ours, tokens)
    assert seen.keys() == made.blocks.keys() == {1, 2, 3}
    for layer, blocks in made.blocks.items():
        torch.testing.assert_close(seen[layer], blocks, rtol=0, atol=0)
        assert (blocks[-1] >= 0).sum() < -(-TOKENS // CONFIG["index_block_size"]), "sparse: some block is left out"
    torch.testing.assert_close(mine, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "shape",
    [
        {"layers": "ss", "mlps": "dd", "heads": 16, "kv_heads": 1, "head_dim": 16, "index_dim": 64, "topk": 2},
        {"layers": "ss", "mlps": "dd", "heads": 4, "kv_heads": 4, "index_dim": 16, "local": 2, "topk": 4},
        {"layers": "s", "mlps": "d", "heads": 32, "head_dim": 128, "rotary_dim": 64, "index_dim": 128, "block": 128},
    ],
    ids=["one group, wide index", "groups of one, two local blocks", "the published heads"],
)
def test_other_shapes(shape: dict[str, Any]) -> None:
    model = oracle.build(oracle.text_config(**shape))
    tokens, seen = prompt(5 * shape.get("block", 16) * shape.get("topk", 3) // 2 + 3), Seen()
    theirs, made = oracle.run(model, tokens)
    model.set_attn_implementation("longsight")
    mine = logits(model, tokens, on_select=seen)
    for layer, blocks in made.blocks.items():
        torch.testing.assert_close(seen[layer], blocks, rtol=0, atol=0)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("cache", [DynamicCache, PagedCache, lambda: PagedCache(max_tokens=300)])
@pytest.mark.parametrize(
    "sizes", [[150] + [1] * 53, [64, 64, 64, 11], [1] * 20 + [183]], ids=["decode", "chunks", "both"]
)
def test_steps_equal_one_prefill(ours: Any, cache: Any, sizes: list[int]) -> None:
    tokens, seen = prompt(), Seen()
    stepped = in_steps(ours, tokens, sizes, cache(), on_select=seen)
    whole = Seen()
    torch.testing.assert_close(stepped, logits(ours, tokens, on_select=whole), rtol=0, atol=TOLERANCE)
    for layer, blocks in whole.items():
        torch.testing.assert_close(seen[layer], blocks, rtol=0, atol=0)


def test_a_fresh_stock_cache_becomes_pages(ours: Any) -> None:
    cache = DynamicCache(config=ours.config)
    in_steps(ours, prompt(40), [30, 10], cache)
    assert all(isinstance(layer, PagedLayer) for layer in cache.layers)
    assert cache.get_seq_length() == 40


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(ours: Any, side: str) -> None:
    rows = [prompt(n, seed=n) for n in (203, 90, 131)]
    mask = torch.zeros(3, 203, dtype=torch.int64)
    batch = torch.full((3, 203), 7)
    for i, row in enumerate(rows):
        at = slice(203 - len(row), None) if side == "left" else slice(len(row))
        mask[i, at], batch[i, at] = 1, row
    cache = PagedCache()
    padded = logits(ours, batch, attention_mask=mask, **cached(cache))
    for i, row in enumerate(rows):
        torch.testing.assert_close(padded[i][mask[i].bool()], logits(ours, row), rtol=0, atol=TOLERANCE)
    # One more token each: position ids as `generate` computes them.
    more = torch.tensor([[5], [6], [8]])
    longer = torch.cat((mask, torch.ones(3, 1, dtype=torch.int64)), 1)
    positions = mask.sum(1, keepdim=True)
    if side == "left":
        positions = torch.full((3, 1), 203)  # the prompt's own positions counted padding too
    after = logits(ours, more, attention_mask=longer, position_ids=positions, **cached(cache))
    for i, row in enumerate(rows):
        alone = logits(ours, torch.cat((row, more[i])))
        torch.testing.assert_close(after[i, 0], alone[-1], rtol=0, atol=TOLERANCE)


def test_left_padding_is_where_stock_goes_wrong(ours: Any) -> None:
    row = prompt(131)
    mask, batch = torch.zeros(1, 150, dtype=torch.int64), torch.full((1, 150), 7)
    mask[0, 19:], batch[0, 19:] = 1, row
    with stock(ours):
        theirs = logits(ours, batch, attention_mask=mask)[0, 19:]
        alone = logits(ours, row)
    assert (theirs - alone).abs().max() > 0.1, "stock is right by now: compare with it directly"
    mine = logits(ours, batch, attention_mask=mask)[0, 19:]
    torch.testing.assert_close(mine, alone, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"prefill_chunk_size": 50}], ids=["greedy", "beams", "chunks"])
def test_generate_gives_stocks_tokens(ours: Any, how: dict[str, Any]) -> None:
    tokens = prompt(120)[None]
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **how}
    mine = ours.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
    with stock(ours):
        theirs = ours.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
    assert mine.tolist() == theirs.tolist()


def test_a_second_turn_goes_on_from_the_first(ours: Any) -> None:
    cache, options = DynamicCache(config=ours.config), {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    first = prompt(100)[None]
    said = ours.generate(first, attention_mask=torch.ones_like(first), **cached(cache), **options)
    branch = copy.deepcopy(cache)
    for seed, kept in ((1, cache), (2, branch)):
        more = torch.cat((said, prompt(30, seed=seed)[None]), 1)
        reused = ours.generate(more, attention_mask=torch.ones_like(more), **cached(kept), **options)
        afresh = ours.generate(more, attention_mask=torch.ones_like(more), **options)
        assert reused.tolist() == afresh.tolist()


def test_under_autocast(ours: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = logits(ours, prompt())
    exact = logits(ours, prompt())
    # Stock's is 0.14: bf16 sends some tokens to other blocks and experts.
    assert (found.float() - exact).square().mean().sqrt() < 0.25 * exact.square().mean().sqrt()


def test_generate_with_left_padding_equals_each_alone(ours: Any) -> None:
    rows = [prompt(n, seed=n) for n in (120, 77)]
    batch, mask = torch.full((2, 120), 7), torch.zeros(2, 120, dtype=torch.int64)
    for i, row in enumerate(rows):
        batch[i, 120 - len(row) :], mask[i, 120 - len(row) :] = row, 1
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    together = ours.generate(batch, attention_mask=mask, **options)[:, 120:]
    for i, row in enumerate(rows):
        alone = ours.generate(row[None], attention_mask=torch.ones(1, len(row), dtype=torch.int64), **options)
        assert together[i].tolist() == alone[0, len(row) :].tolist()


def test_cropping_forgets_and_goes_on(ours: Any) -> None:
    tokens, cache = prompt(), PagedCache()
    in_steps(ours, tokens[:150], [140, 10], cache)
    cache.crop(-27)
    assert cache.get_seq_length() == 123
    rest = in_steps(ours, tokens[123:], [80], cache)
    torch.testing.assert_close(rest, logits(ours, tokens)[123:], rtol=0, atol=TOLERANCE)


def test_cropping_a_padded_step_keeps_count_of_the_padding(ours: Any) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    cache = PagedCache()
    logits(ours, torch.full((2, 5), 9), attention_mask=mask, **cached(cache))
    cache.crop(-2)
    assert cache.get_seq_length() == 3
    assert cache.layers[0].lengths == (1, 3)


def test_documents_packed_into_one_row_do_not_see_each_other(ours: Any) -> None:
    documents = [prompt(n, seed=n) for n in (70, 1, 130)]
    positions = torch.cat([torch.arange(len(d)) for d in documents])[None]
    packed = logits(ours, torch.cat(documents), position_ids=positions)
    borders = torch.tensor([0, 70, 71, 201], dtype=torch.int32)
    # RoPE's positions may skip ahead without moving the grid of blocks, once the borders are given.
    skipping = logits(ours, torch.cat(documents), position_ids=positions + 1000, cu_seq_lens_q=borders)
    for part, other, document in zip(packed.split([70, 1, 130]), skipping.split([70, 1, 130]), documents, strict=True):
        alone = logits(ours, document)
        torch.testing.assert_close(part, alone, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(other, alone, rtol=0, atol=5 * TOLERANCE)


def test_no_tensor_of_queries_times_keys(ours: Any) -> None:
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, Tensor) and tensor.dtype != torch.uint8:  # the pool of pages is bytes
                    self.elements = max(self.elements, tensor.numel())
            return out

    n = 700
    tokens = prompt(n)
    with torch.no_grad(), Largest() as seen:
        ours.model(tokens[None], use_cache=True)
    assert seen.elements < n * n / 2


def gradients(model: Any, batch: Tensor, **kwargs: Any) -> dict[str, Tensor]:
    model.zero_grad()
    model(batch, labels=batch, **kwargs).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("use_cache", [False, True])
def test_gradients_equal_stocks(ours: Any, use_cache: bool) -> None:
    batch = torch.stack((prompt(120), prompt(120, seed=1)))
    mine = gradients(ours, batch, use_cache=use_cache)
    with stock(ours):
        theirs = gradients(ours, batch, use_cache=use_cache)
    assert mine.keys() == theirs.keys()
    assert not any("indexer" in name for name in mine)
    for name, grad in theirs.items():
        torch.testing.assert_close(mine[name], grad, rtol=1e-3, atol=1e-4 * grad.abs().max().item() + 1e-7, msg=name)


def test_a_training_step_may_start_a_cache_but_not_go_on_from_one(ours: Any) -> None:
    tokens, cache = prompt(60), PagedCache()
    ours(tokens[None], **cached(cache))
    torch.testing.assert_close(
        in_steps(ours, tokens[:40], [40], cache), logits(ours, torch.cat((tokens, tokens[:40])))[60:], rtol=0, atol=1e-4
    )
    with pytest.raises(UnsupportedError, match="gradients do not reach"):
        ours(tokens[None], **cached(cache))


def test_the_vision_language_class_runs(ours: Any) -> None:
    outer = oracle.build_vision(CONFIG)
    tokens = prompt(150)
    with torch.no_grad():
        eager = outer(tokens[None], use_cache=False).logits
        outer.set_attn_implementation("longsight")
        mine = outer(tokens[None], use_cache=False).logits
        torch.testing.assert_close(mine, eager, rtol=0, atol=TOLERANCE)
        patches = torch.randn(16, 3 * 2 * 2 * 2, generator=torch.Generator().manual_seed(1))
        grid = torch.tensor([[1, 4, 4]])
        seen = outer.model.get_image_features(patches, grid).pooler_output
        outer.set_attn_implementation("eager")
        again = outer.model.get_image_features(patches, grid).pooler_output
    torch.testing.assert_close(seen[0], again[0], rtol=0, atol=TOLERANCE)


def llama() -> Any:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16,
    )  # fmt: skip
    return LlamaForCausalLM._from_config(config, attn_implementation="longsight").eval()


def test_a_model_without_an_index_branch_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="LlamaAttention has none"):
        llama()(torch.ones(1, 5, dtype=torch.int64))


def test_what_cannot_be_sparse_is_refused(ours: Any) -> None:
    tokens = prompt(20)
    four = torch.ones(1, 1, 20, 20, dtype=torch.bool)
    with pytest.raises(UnsupportedError, match=r"attention_mask must be .* got \[1, 1, 20, 20\]"):
        logits(ours, tokens, attention_mask=four)
    with pytest.raises(UnsupportedError, match=r"shows \[5\] past tokens, but there is no cache"):
        logits(ours, tokens, attention_mask=torch.ones(1, 25))
    with pytest.raises(UnsupportedError, match="StaticLayer, of a kind it cannot replace"):
        logits(ours, tokens, **cached(StaticCache(ours.config, max_cache_len=32)))
    filled = DynamicCache(config=ours.config)
    with stock(ours):
        logits(ours, tokens, **cached(filled))
    with pytest.raises(UnsupportedError, match="already filled"):
        logits(ours, tokens, **cached(filled))
    cache = PagedCache()
    logits(ours, tokens, **cached(cache))
    hidden = torch.ones(1, 21, dtype=torch.int64)
    hidden[0, :4] = 0
    with pytest.raises(UnsupportedError, match=r"shows \[16\] past tokens, the cache holds \[20\]"):
        logits(ours, tokens[:1], attention_mask=hidden, **cached(cache))
    with pytest.raises(UnsupportedError, match="a batch of 2 sequences for a cache of 1"):
        logits(ours, tokens[:1].expand(2, 1), **cached(cache))
    half = oracle.build(CONFIG).half()
    half.set_attn_implementation("longsight")
    with pytest.raises(UnsupportedError, match="float16"):
        logits(half, tokens)


def test_page_tables_share_pages_until_someone_writes() -> None:
    tables = PageTables(1, 16)
    tables.extend([20])
    tables.select([0, 0, 0])
    assert tables.tables == [[0, 1]] * 3
    copies, changed = tables.extend([1, 1, 1])
    assert changed
    assert [source for source, _ in copies] == [1, 1]
    assert len({table[1] for table in tables.tables}) == 3
    tables.select([2])
    tables.extend([16])
    assert tables.pages == 4, "pages that nobody owns any more are used again"
    tables.truncate([3])
    assert len(tables.tables[0]) == 1
