"""One prefill through M3's sparse attention, ours or transformers', in a fresh process: seconds, extra memory, outputs.

    python -m bench.workers.attention_module ours|transformers DTYPE TOKENS REPEATS THREADS OUT.pt

Both sides start from the same projected states (seeded noise) and end before the output projection: norms, rotary
embedding, selection and attention are timed, projections are not. OUT.pt gets the attention output [T, H_q * D] and
the chosen blocks [T, H_kv, k]. The last stdout line is JSON: seconds per repeat, and the peak of physical memory above
what was held before.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.machine import current_rss, peak_rss, reset_peak_rss
from bench.shapes import M3, Shape, suffix_batch
from longsight.ops import LayerPages, PageLayout, choose

ROTARY, THETA, EPS = 64, 5e6, 1e-6
CHUNK = 1024  # rows at a time on our side, as an engine's chunked prefill does
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
Run = Callable[[], tuple[Tensor, Tensor]]


def projected(shape: Shape, n: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The five projections of one prompt, before norms: name -> [n, width]."""
    generator = torch.Generator().manual_seed(11)
    widths = {
        "q": shape.heads * shape.dim,
        "k": shape.kv_heads * shape.dim,
        "v": shape.kv_heads * shape.dim,
        "index_q": shape.kv_heads * shape.index_dim,
        "index_k": shape.index_dim,
    }
    return {name: torch.randn(n, width, generator=generator).to(dtype) for name, width in widths.items()}


def norm_weights(shape: Shape, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(12)
    dims = {"q": shape.dim, "k": shape.dim, "index_q": shape.index_dim, "index_k": shape.index_dim}
    return {name: (0.3 * torch.randn(dim, generator=generator)).to(dtype) for name, dim in dims.items()}


def ours(shape: Shape, states: dict[str, Tensor], weights: dict[str, Tensor]) -> Run:
    ops, _ = choose()
    n, dtype = states["q"].shape[0], states["q"].dtype
    layout = PageLayout(shape.block, shape.kv_heads, shape.dim, shape.index_dim, dtype)
    frequency = THETA ** (-torch.arange(0, ROTARY, 2, dtype=torch.float64) / ROTARY)
    angles = torch.arange(n, dtype=torch.float64)[:, None] * frequency
    cos, sin = angles.cos().float(), angles.sin().float()

    def forward() -> tuple[Tensor, Tensor]:
        pages = LayerPages.allocate(layout, -(-n // shape.block))
        out = torch.empty(n, shape.heads * shape.dim, dtype=dtype)
        ids = torch.empty(n, shape.kv_heads, shape.topk, dtype=torch.int32)
        for start in range(0, n, CHUNK):
            at = slice(start, min(start + CHUNK, n))
            rows = at.stop - start
            batch = suffix_batch(rows, at.stop, shape.block)

            def rotated(name: str, heads: int, at: slice = at, rows: int = rows) -> Tensor:
                return ops.norm_rope(states[name][at].view(rows, heads, -1), weights[name], cos[at], sin[at], EPS)

            values = states["v"][at].view(rows, shape.kv_heads, shape.dim)
            ops.append_kv(pages, batch, rotated("k", shape.kv_heads), values, rotated("index_k", 1)[:, 0])
            ids[at] = ops.select_blocks(rotated("index_q", shape.kv_heads), pages, batch, topk=shape.topk)
            chunk, _ = ops.sparse_attention(rotated("q", shape.heads), pages, batch, ids[at])
            out[at] = chunk.flatten(1)
        return out, ids

    return forward


class Stored(nn.Module):
    """Stands in for a projection: returns what was projected beforehand."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    def forward(self, _: Tensor) -> Tensor:
        return self.states


def theirs(shape: Shape, states: dict[str, Tensor], weights: dict[str, Tensor]) -> Run:
    from transformers.models.minimax_m3_vl import modeling_minimax_m3_vl as m3
    from transformers.models.minimax_m3_vl.configuration_minimax_m3_vl import MiniMaxM3VLTextConfig

    config = MiniMaxM3VLTextConfig(
        vocab_size=16,
        bos_token_id=None,
        eos_token_id=None,
        hidden_size=64,  # only the projections see it, and they are replaced
        num_hidden_layers=1,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.dim,
        rms_norm_eps=EPS,
        rope_parameters={"rope_type": "default", "rope_theta": THETA, "partial_rotary_factor": ROTARY / shape.dim},
        layer_types=["minimax_m3_sparse"],
        mlp_layer_types=["dense"],
        index_n_heads=shape.kv_heads,
        index_head_dim=shape.index_dim,
        index_block_size=shape.block,
        index_topk_blocks=shape.topk,
        index_local_blocks=1,
    )
    config._attn_implementation = "sdpa"
    module = m3.MiniMaxM3VLAttention(config, 0).to(states["q"].dtype).eval()
    stored = {name: Stored(value[None]) for name, value in states.items()}
    module.q_proj, module.k_proj, module.v_proj = stored["q"], stored["k"], stored["v"]
    module.indexer.q_proj, module.indexer.k_proj = stored["index_q"], stored["index_k"]
    module.o_proj = nn.Identity()
    with torch.no_grad():
        for norm, name in (
            (module.q_norm, "q"),
            (module.k_norm, "k"),
            (module.indexer.q_norm, "index_q"),
            (module.indexer.k_norm, "index_k"),
        ):
            norm.weight.copy_(weights[name])
    n = states["q"].shape[0]
    hidden = torch.zeros(1, n, 64, dtype=states["q"].dtype)
    positions = torch.arange(n)[None]
    rope = m3.MiniMaxM3VLRotaryEmbedding(config)(hidden, positions)
    chosen: list[Tensor] = []
    module.indexer.register_forward_hook(lambda _module, _args, ids: chosen.append(ids))

    def forward() -> tuple[Tensor, Tensor]:
        chosen.clear()
        with torch.no_grad():
            out, _ = module(hidden, rope, None, position_ids=positions)
        return out[0], chosen[0][0].transpose(0, 1)  # [T, H_q * D], [T, H_kv, k] in score order

    return forward


def main(arguments: list[str]) -> None:
    side, dtype_name, n, repeats, threads, path = arguments
    torch.set_num_threads(int(threads))
    dtype = DTYPES[dtype_name]
    states, weights = projected(M3, int(n), dtype), norm_weights(M3, dtype)
    forward = {"ours": ours, "transformers": theirs}[side](M3, states, weights)
    before = current_rss()
    reset_peak_rss()
    seconds = []
    for i in range(int(repeats)):
        start = time.perf_counter()
        out, ids = forward()
        seconds.append(time.perf_counter() - start)
        if i == 0:
            extra = peak_rss() - before
    torch.save({"out": out, "ids": ids.to(torch.int32)}, path)
    print(json.dumps({"seconds": seconds, "extra_bytes": extra}))


if __name__ == "__main__":
    main(sys.argv[1:])
