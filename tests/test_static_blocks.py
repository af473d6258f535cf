"""The static pattern against its definition, written out row by row."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longsight.ops import Batch, UnsupportedError
from longsight.ops.training import Documents, StaticPolicy, static_blocks
from longsight.ops.training.static import CHUNK_ROWS


def mix(key: int, word: int) -> int:
    x = (key * 0x9E3779B1 + word + 1) % 2**32
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def chosen(position: int, group: int, layer: int, policy: StaticPolicy, block_size: int, topk: int) -> list[int]:
    """One row's blocks: candidates in order of priority, cut off at topk."""
    own = position // block_size
    visible = range(own + 1)
    if len(visible) <= topk:
        return list(visible)
    window = [own - i for i in range(policy.window) if own - i >= 0]
    anchors = [block for block in reversed(visible) if block % policy.anchor_stride == 0]
    rest = [block for block in visible if block not in window and block not in anchors]
    blocks = list(dict.fromkeys(window + anchors))[:topk]
    draws = min(policy.random, len(rest), topk - len(blocks))
    key = 0
    for word in (policy.seed % 2**32, policy.seed // 2**32 % 2**32, layer, group, position):
        key = mix(key, word)
    taken: list[int] = []
    for i in range(draws):
        last = len(rest) - draws + i
        rank = mix(key, i) * (last + 1) >> 32
        taken.append(last if rank in taken else rank)
    return sorted(blocks + [rest[rank] for rank in taken])


def padded(blocks: list[int], topk: int) -> list[int]:
    return blocks + [-1] * (topk - len(blocks))


policies = st.builds(
    StaticPolicy,
    window=st.integers(1, 6),
    anchor_stride=st.integers(1, 9),
    random=st.integers(0, 6),
    seed=st.integers(0, 2**64 - 1),
)


@settings(max_examples=60, deadline=None)
@given(policies, st.integers(1, 7), st.integers(1, 5), st.lists(st.integers(0, 150), max_size=3), st.integers(0, 3))
def test_as_defined(policy: StaticPolicy, topk: int, block_size: int, lengths: list[int], layer: int) -> None:
    docs = Documents.of_lengths(lengths)
    ids = policy.blocks(docs, block_size=block_size, topk=topk, kv_heads=2, layer=layer)
    assert ids.dtype == torch.int32
    assert ids.is_contiguous()
    expected = [
        [padded(chosen(p, group, layer, policy, block_size, topk), topk) for group in range(2)]
        for length in lengths
        for p in range(length)
    ]
    assert ids.tolist() == expected


def test_long_rows_and_chunks() -> None:
    """Positions up to a million, in more rows than one chunk takes."""
    policy = StaticPolicy(window=2, anchor_stride=3000, random=16, seed=7)
    rows = CHUNK_ROWS + 3
    batch = Batch.build([(rows, 1 << 20, range((1 << 20) // 16))])
    ids = policy.blocks(batch, block_size=16, topk=16, kv_heads=2, layer=5)
    for row in (0, 1, CHUNK_ROWS - 1, CHUNK_ROWS, rows - 1):
        position = (1 << 20) - rows + row
        for group in range(2):
            assert ids[row, group].tolist() == chosen(position, group, 5, policy, 16, 16)
    assert (ids.diff(dim=-1) > 0).all()  # ascending, full, without duplicates


def test_prefill_chunks_and_decode_agree() -> None:
    policy = StaticPolicy(window=1, anchor_stride=5, random=2, seed=1)
    whole = policy.blocks(Documents.of_lengths([200]), block_size=4, topk=6, kv_heads=3, layer=1)
    pages = list(range(50))
    for pieces in ([200], [1] * 200, [7, 64, 129]):
        ends = list(itertools.accumulate(pieces))
        parts = [
            policy.blocks(Batch.build([(n, end, pages)]), block_size=4, topk=6, kv_heads=3, layer=1)
            for n, end in zip(pieces, ends, strict=True)
        ]
        assert torch.equal(torch.cat(parts), whole)


def test_padding_rows_choose_nothing() -> None:
    batch = Batch.build([(5, 2, [0])])  # positions -3 .. 1
    ids = static_blocks(batch, block_size=16, topk=3, kv_heads=1, window=1, anchor_stride=1, random=2, seed=0, layer=0)
    assert ids[:, 0].tolist() == [[-1, -1, -1]] * 3 + [[0, -1, -1]] * 2


def test_groups_layers_seeds_and_rows_draw_apart() -> None:
    docs = Documents.of_lengths([4000])

    def ids(seed: int = 0, layer: int = 0) -> torch.Tensor:
        return StaticPolicy(1, 10**6, 3, seed).blocks(docs, block_size=4, topk=8, kv_heads=2, layer=layer)

    late = slice(2000, None)
    for a, b in (
        (ids()[late, 0], ids()[late, 1]),
        (ids()[late], ids(layer=1)[late]),
        (ids()[late], ids(seed=1)[late]),
        (ids()[late], ids(seed=1 << 32)[late]),
        (ids()[2000:3999:4], ids()[2001:4000:4]),
    ):
        assert (a == b).all(-1).float().mean() < 0.05


def test_draws_are_even() -> None:
    """Every set of 2 out of 5 free blocks, about equally often."""
    ids = StaticPolicy(1, 100, 2).blocks(
        Batch.build([(1, 28, range(7))] * 1), block_size=4, topk=4, kv_heads=6000, layer=0
    )
    counts = Counter(tuple(row) for row in ids[0].tolist())
    assert set(counts) == {(0, *pair, 6) for pair in itertools.combinations(range(1, 6), 2)}
    assert all(abs(count - 600) < 120 for count in counts.values())


@pytest.mark.parametrize(("window", "stride", "count"), [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_numbers_out_of_range(window: int, stride: int, count: int) -> None:
    with pytest.raises(UnsupportedError, match="must be at least"):
        StaticPolicy(window, stride, count)


def test_feeds_the_main_branch() -> None:
    """A pattern that takes every block gives what dense attention gives."""
    from longsight.ops import LayerPages, PageLayout, reference

    random.seed(0)
    torch.manual_seed(0)
    layout = PageLayout(16, 2, 16, 0, torch.float32)
    pages = LayerPages.allocate(layout, 7)
    table = random.sample(range(7), 7)
    batch = Batch.build([(100, 100, table)])
    reference.append_kv(pages, batch, torch.randn(100, 2, 16), torch.randn(100, 2, 16), None)
    q = torch.randn(100, 4, 16)
    ids = StaticPolicy(1, 1, 0).blocks(batch, block_size=16, topk=7, kv_heads=2, layer=0)
    sparse, _ = reference.sparse_attention(q, pages, batch, ids)
    dense, _ = reference.dense_attention(q, pages, batch)
    assert torch.allclose(sparse, dense, atol=1e-6)
