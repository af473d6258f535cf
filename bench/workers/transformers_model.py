"""One prompt through a transformers M3 model, stock or with our attention, in a fresh process.

    python -m bench.workers.transformers_model ours|stock DTYPE TOKENS REPEATS THREADS OUT.pt

The model is random (seeded) with one group of M3's heads, two sparse layers and small dense MLPs. Each repeat prefills
a fresh cache in one call, as `generate` does, then decodes a few tokens. OUT.pt gets the last logits [R, V] and each
layer's blocks [T, H_kv, k]. The last stdout line is JSON: seconds of each prefill and of each decoded token, and the
peak of physical memory above what was held before the first prefill.
"""

from __future__ import annotations

import inspect
import json
import sys
import time
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.minimax_m3_vl import modeling_minimax_m3_vl as m3
from transformers.models.minimax_m3_vl.configuration_minimax_m3_vl import MiniMaxM3VLTextConfig

import longsight.hf  # noqa: F401  registers the attention
from bench.machine import current_rss, peak_rss, reset_peak_rss

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
HEADS, KV_HEADS, DIM, ROTARY, LAYERS, HIDDEN, VOCAB = 16, 1, 128, 64, 2, 512, 1024
IMPLEMENTATION = {"ours": "longsight", "stock": "sdpa"}
LAST = 64  # rows of logits that are compared
DECODED = 8
# transformers 5.24 renamed the argument.
CACHE = "cache" if "cache" in inspect.signature(m3.MiniMaxM3VLForCausalLM.forward).parameters else "past_key_values"


def build(side: str, dtype: torch.dtype) -> Any:
    config = MiniMaxM3VLTextConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=64,
        dense_intermediate_size=1024,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=DIM,
        rotary_dim=ROTARY,
        rope_parameters={"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": ROTARY / DIM},
        layer_types=["minimax_m3_sparse"] * LAYERS,
        mlp_layer_types=["dense"] * LAYERS,
        index_n_heads=KV_HEADS,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = m3.MiniMaxM3VLForCausalLM._from_config(config, attn_implementation=IMPLEMENTATION[side])
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(noise * (0.3 if p.ndim == 1 else 1.3 / p.shape[-1] ** 0.5))
    frequencies = model.model.rotary_emb.inv_freq
    model = model.to(dtype).eval()
    model.model.rotary_emb.inv_freq = frequencies  # `.to` would round them, loading a checkpoint does not
    return model


def watch(model: Any, side: str) -> tuple[list[Tensor], dict[str, Any]]:
    """Where the blocks of each layer will be, [T, H_kv, k] with -1 first, and what the model must be called with."""
    chosen: list[Tensor] = []
    if side == "ours":
        return chosen, {"on_select": lambda _layer, ids: chosen.append(ids.sort(-1).values)}
    for layer in model.model.layers:
        layer.self_attn.indexer.register_forward_hook(
            lambda _module, _args, ids: chosen.append(ids[0].transpose(0, 1).sort(-1).values.int())
        )
    return chosen, {}


@torch.no_grad()
def main(arguments: list[str]) -> None:
    side, dtype, n, repeats, threads, path = arguments
    torch.set_num_threads(int(threads))
    model = build(side, DTYPES[dtype])
    chosen, watching = watch(model, side)
    tokens = torch.randint(VOCAB, (1, int(n)), generator=torch.Generator().manual_seed(6))
    before = current_rss()
    reset_peak_rss()
    prefill, decode = [], []
    for i in range(int(repeats)):
        chosen.clear()
        start = time.perf_counter()
        cache = DynamicCache(config=model.config)
        out = model(tokens, **{CACHE: cache}, use_cache=True, logits_to_keep=LAST, **watching)
        prefill.append(time.perf_counter() - start)
        if i == 0:
            extra = peak_rss() - before
            torch.save({"logits": out.logits[0], "ids": torch.stack(chosen)}, path)
        for _ in range(DECODED):
            start = time.perf_counter()
            model(tokens[:, :1], **{CACHE: cache}, use_cache=True)
            decode.append(time.perf_counter() - start)
        del out, cache
    print(json.dumps({"prefill_s": prefill, "decode_s": decode, "extra_bytes": extra}))


if __name__ == "__main__":
    main(sys.argv[1:])
