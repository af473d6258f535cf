"""The operators on plain tensors: the reference's results, for a text's last rows too, and words for what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from longsight.ops import UnsupportedError, dense_attention, select_blocks, sparse_attention

BLOCK, TOPK = 16, 3


def tensors(tokens: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(tokens)
    shapes = {"q": (tokens, 4, 32), "k": (tokens, 2, 32), "v": (tokens, 2, 32)}
    shapes |= {"index_q": (tokens, 2, 16), "index_k": (tokens, 16)}  # type: ignore[dict-item]
    return {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("tokens", [1, BLOCK * TOPK - 1, BLOCK * TOPK, BLOCK * TOPK + 1, 100])
@pytest.mark.parametrize("rows", [1, None])
def test_every_backend_gives_what_the_formula_says(tokens: int, rows: int | None) -> None:
    t = tensors(tokens)
    last = slice(-(rows or tokens), None)
    results = []
    for backend in (None, "reference"):
        ids = select_blocks(t["index_q"][last], t["index_k"], block_size=BLOCK, topk=TOPK, backend=backend)
        out, lse = sparse_attention(t["q"][last], t["k"], t["v"], ids, block_size=BLOCK, backend=backend)
        results.append((ids, out, lse))
    (ids, out, lse), (same_ids, same_out, same_lse) = results
    assert torch.equal(ids, same_ids)
    torch.testing.assert_close(out, same_out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, same_lse, atol=1e-5, rtol=1e-5)
    visible = torch.zeros(len(out), 2, tokens, dtype=torch.bool)
    for row in range(len(out)):
        position = tokens - len(out) + row
        for group in range(2):
            for block in ids[row, group].tolist():
                if block >= 0:
                    visible[row, group, block * BLOCK : min((block + 1) * BLOCK, position + 1)] = True
    scores = torch.einsum("thd,nhd->thn", t["q"][last], t["k"].repeat_interleave(2, 1)) / 32**0.5
    masked = scores.masked_fill(~visible.repeat_interleave(2, 1), -torch.inf)
    expected = torch.einsum("thn,nhd->thd", masked.softmax(-1), t["v"].repeat_interleave(2, 1))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    full, _ = dense_attention(t["q"][last], t["k"], t["v"])
    assert torch.allclose(full, out, atol=1e-5) == (tokens <= BLOCK * TOPK)


def test_bfloat16() -> None:
    t = tensors(70, torch.bfloat16)
    ids = select_blocks(t["index_q"], t["index_k"], block_size=BLOCK, topk=TOPK)
    out, lse = sparse_attention(t["q"], t["k"], t["v"], ids, block_size=BLOCK)
    assert (out.dtype, lse.dtype, ids.dtype) == (torch.bfloat16, torch.float32, torch.int32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": torch.zeros(70, 32)}, r"q is \[70, 32\]; it must have 3 dimensions"),
        ({"q": torch.zeros(70, 3, 32)}, "do not go together"),
        ({"k": torch.zeros(60, 2, 32)}, "do not go together"),
        ({"q": torch.zeros(80, 4, 32)}, "80 rows of queries and 70 keys"),
        ({"q": torch.zeros(70, 4, 32, requires_grad=True)}, "longsight.ops.training"),
        ({"block_size": 17}, "17"),
    ],
)
def test_what_cannot_run_is_named(change: dict[str, Any], words: str) -> None:
    t = tensors(70)
    arguments = {"q": t["q"], "k": t["k"], "v": t["v"], "ids": torch.zeros(70, 2, 1, dtype=torch.int32)}
    with pytest.raises(UnsupportedError, match=words):
        sparse_attention(**{**arguments, "block_size": BLOCK, **change})
