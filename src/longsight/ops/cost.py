"""FLOPs and bytes of attention: dense, grouped-query (GQA) and MiniMax Sparse Attention (MSA). The capacity model.

A fused multiply-add counts 2. "Dense" means every head has keys and values of its own; GQA shares them in a group; both
do the same FLOPs. Plain functions follow the paper (arXiv:2606.13392), which charges the causal average N / 2 for every
query and k * B tokens to every sparse query; those with `exact` charge what each query really reads.

Legend: N tokens of context, H_q query heads, H_kv groups, D head dim, D_idx index dim, B block size, k blocks kept.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionShape:
    """One layer's attention. Defaults: MiniMax-M3."""

    heads: int = 64
    kv_heads: int = 4
    head_dim: int = 128
    index_dim: int = 128
    block_size: int = 128
    topk_blocks: int = 16

    @property
    def budget(self) -> int:
        """Tokens a sparse query reads at most: k * B."""
        return self.topk_blocks * self.block_size


# Prefill of N tokens, FLOPs.


def dense_prefill_flops(shape: AttentionShape, n: int) -> int:
    """Dense or GQA: scores and values over the causal half, 2 H_q D N^2."""
    return 2 * shape.heads * shape.head_dim * n * n


def index_prefill_flops(shape: AttentionShape, n: int) -> int:
    """MSA's scan: one index head per group over the causal half, H_kv D_idx N^2."""
    return shape.kv_heads * shape.index_dim * n * n


def main_prefill_flops(shape: AttentionShape, n: int) -> int:
    """MSA's main branch, k * B tokens per query: 4 H_q D N k B."""
    return 4 * shape.heads * shape.head_dim * n * shape.budget


def msa_prefill_flops(shape: AttentionShape, n: int) -> int:
    return index_prefill_flops(shape, n) + main_prefill_flops(shape, n)


def exact_dense_prefill_flops(shape: AttentionShape, n: int, start: int = 0) -> int:
    """What queries start..n-1 really do: position p reads p + 1 tokens."""
    tokens = (n * (n + 1) - start * (start + 1)) // 2
    return 4 * shape.heads * shape.head_dim * tokens


def exact_main_prefill_flops(shape: AttentionShape, n: int, start: int = 0) -> int:
    """What queries start..n-1 really read: everything up to k blocks, then k - 1 whole blocks and their own part."""
    return 4 * shape.heads * shape.head_dim * (attended_tokens(shape, n) - attended_tokens(shape, start))


def exact_index_prefill_flops(shape: AttentionShape, n: int, start: int = 0) -> int:
    """What queries start..n-1 really score: every whole block before their own, once there are more than k blocks."""
    return 2 * shape.kv_heads * shape.index_dim * (_scored_tokens(shape, n) - _scored_tokens(shape, start))


def attended_tokens(shape: AttentionShape, n: int) -> int:
    """Tokens that queries 0..n-1 of one sequence attend to, summed."""
    b, k = shape.block_size, shape.topk_blocks
    short = min(n, shape.budget)
    total = short * (short + 1) // 2
    blocks, rest = divmod(n - short, b)
    own = blocks * b * (b + 1) // 2 + rest * (rest + 1) // 2
    return total + (n - short) * (k - 1) * b + own


def _scored_tokens(shape: AttentionShape, n: int) -> int:
    """Index scores that queries 0..n-1 need: B * own for each query in block own >= k."""
    b, k = shape.block_size, shape.topk_blocks
    blocks, rest = divmod(n, b)
    whole = sum_of_range(k, blocks) * b * b
    return whole + (rest * blocks * b if blocks >= k else 0)


def sum_of_range(first: int, end: int) -> int:
    """first + ... + (end - 1); 0 if the range is empty."""
    return (first + end - 1) * (end - first) // 2 if end > first else 0


# Training. The backward pass makes the scores again: five products for the forward's two.
BACKWARD_OVER_FORWARD = 2.5
TRAINING_OVER_FORWARD = 1 + BACKWARD_OVER_FORWARD


def training_flop_ratio(shape: AttentionShape, n: int) -> float:
    """Dense over MSA, forward and backward, as `msa_prefill_flops` charges them; selection has no backward."""
    msa = TRAINING_OVER_FORWARD * main_prefill_flops(shape, n) + index_prefill_flops(shape, n)
    return TRAINING_OVER_FORWARD * dense_prefill_flops(shape, n) / msa


def divergence_flops(shape: AttentionShape, n: int) -> int:
    """The index branch's divergence over the chosen tokens with its gradients: 2 (H_q D + 3 H_kv D_idx) a token."""
    per_token = 2 * (shape.heads * shape.head_dim + 3 * shape.kv_heads * shape.index_dim)
    return per_token * attended_tokens(shape, n)


# One decoded token at context N.


def dense_decode_flops(shape: AttentionShape, n: int) -> int:
    return 4 * shape.heads * shape.head_dim * n


def msa_decode_flops(shape: AttentionShape, n: int) -> int:
    return 2 * shape.kv_heads * shape.index_dim * n + 4 * shape.heads * shape.head_dim * min(n, shape.budget)


def dense_decode_bytes(shape: AttentionShape, n: int, itemsize: int = 2) -> int:
    """Keys and values of every query head."""
    return 2 * itemsize * shape.heads * shape.head_dim * n


def gqa_decode_bytes(shape: AttentionShape, n: int, itemsize: int = 2) -> int:
    """Keys and values of every group."""
    return 2 * itemsize * shape.kv_heads * shape.head_dim * n


def msa_decode_bytes(shape: AttentionShape, n: int, itemsize: int = 2) -> int:
    """All index keys, and keys and values of the chosen blocks."""
    return itemsize * shape.index_dim * n + 2 * itemsize * shape.kv_heads * shape.head_dim * min(n, shape.budget)


# A whole model.


@dataclass(frozen=True)
class ModelShape:
    """What the cost of a model depends on.

    full_layers, sparse_layers: counts. linear_parameters: weights that every token passes through (projections, dense
    MLPs, shared and chosen experts, the output matrix), not the embedding table.
    """

    attention: AttentionShape
    full_layers: int
    sparse_layers: int
    linear_parameters: int

    @property
    def layers(self) -> int:
        return self.full_layers + self.sparse_layers


def attention_prefill_flops(model: ModelShape, n: int, *, all_dense: bool = False) -> int:
    """Attention of all layers. all_dense: as if every layer were a full-attention layer."""
    dense = dense_prefill_flops(model.attention, n)
    if all_dense:
        return model.layers * dense
    return model.full_layers * dense + model.sparse_layers * msa_prefill_flops(model.attention, n)


def forward_prefill_flops(model: ModelShape, n: int, *, all_dense: bool = False) -> int:
    """Attention and every matrix product of a prompt of N tokens; all_dense leaves the index projections in (1 %)."""
    return attention_prefill_flops(model, n, all_dense=all_dense) + 2 * model.linear_parameters * n


def attention_decode_bytes(model: ModelShape, n: int, *, all_dense: bool = False, itemsize: int = 2) -> int:
    """Cache bytes that one decoded token reads in all layers. all_dense: as if every layer were GQA over everything."""
    full = gqa_decode_bytes(model.attention, n, itemsize)
    sparse = full if all_dense else msa_decode_bytes(model.attention, n, itemsize)
    return model.full_layers * full + model.sparse_layers * sparse


def forward_decode_bytes(model: ModelShape, n: int, *, all_dense: bool = False, itemsize: int = 2) -> int:
    """Cache bytes and active weights that one decoded token reads."""
    return attention_decode_bytes(model, n, all_dense=all_dense, itemsize=itemsize) + itemsize * model.linear_parameters


def kv_bytes_per_token(model: ModelShape, itemsize: int = 2) -> int:
    """Cache of one token in all layers: keys, values, and an index key in each sparse layer."""
    a = model.attention
    key_values = 2 * a.kv_heads * a.head_dim
    return itemsize * (model.layers * key_values + model.sparse_layers * a.index_dim)


# The published MiniMax-M3: 60 layers, 3 of them full attention with a dense MLP, 57 sparse with 4 of 128 experts and
# one shared. Per layer: q and o 2 * 8192 * 6144, k and v 2 * 512 * 6144; index 640 * 6144; expert 3 * 3072 * 6144 (5
# active); dense MLP 3 * 12288 * 6144; router 128 * 6144; output 200064 * 6144.
_H = 6144
MINIMAX_M3 = ModelShape(
    attention=AttentionShape(),
    full_layers=3,
    sparse_layers=57,
    linear_parameters=60 * (2 * 8192 + 2 * 512) * _H
    + 3 * 3 * 12288 * _H
    + 57 * (640 + 128 + 5 * 3 * 3072) * _H
    + 200064 * _H,
)
