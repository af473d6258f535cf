"""torch's scaled_dot_product_attention on the same queries, keys and values, in the forms a user would write.

Legend: T rows, H_q query heads, H_kv groups, D head dim, n tokens.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from longsight.ops import LayerPages


def plain_kv(pages: LayerPages, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of pages `ids` as torch wants them: two contiguous [1, H_kv, n, D]."""
    keys = pages.keys(ids).transpose(0, 1).flatten(1, 2)[None].contiguous()
    values = pages.values(ids).transpose(0, 1).flatten(1, 2)[None].contiguous()
    return keys, values


def repeat_groups(keys: Tensor, heads: int) -> Tensor:
    """[1, H_kv, n, D] -> [1, H_q, n, D], each group's tensor repeated for its heads. Not timed: a gift to the peer."""
    return keys.repeat_interleave(heads // keys.shape[1], dim=1)


def causal(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Whole-prompt causal attention. q [1, H_q, n, D], keys and values [1, H_q or H_kv, n, D] -> [1, H_q, n, D]."""
    return F.scaled_dot_product_attention(q, keys, values, is_causal=True, enable_gqa=keys.shape[1] != q.shape[1])


def masked(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """The same under a bool mask [1, H_q or H_kv, n, n]: True where a query attends."""
    mask = repeat_groups(mask, q.shape[1])
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=keys.shape[1] != q.shape[1])


def regrouped_decode(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One token, heads of a group as query rows: q [1, H_q, D] -> [1, H_kv, G, D]. Fast for GQA."""
    groups = keys.shape[1]
    rows = q.view(1, groups, q.shape[1] // groups, q.shape[2])
    return F.scaled_dot_product_attention(rows, keys, values)


def gqa_decode(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One token with enable_gqa=True: q [1, H_q, D] -> [1, H_q, 1, D]. Very slow in bf16 on a CPU: never a baseline."""
    return F.scaled_dot_product_attention(q.transpose(0, 1)[None], keys, values, enable_gqa=True)
