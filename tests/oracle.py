"""Tiny random MiniMax-M3 models built with transformers: the outside truth that the model tests compare with."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.minimax_m3_vl import modeling_minimax_m3_vl as m3
from transformers.models.minimax_m3_vl.configuration_minimax_m3_vl import MiniMaxM3VLConfig, MiniMaxM3VLTextConfig
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()

# transformers 5.24 renamed the argument.
CACHE = "cache" if "cache" in inspect.signature(m3.MiniMaxM3VLForCausalLM.forward).parameters else "past_key_values"

VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 2,
    "image_size": 8,
}


def text_config(
    *,
    layers: str = "fsss",
    mlps: str = "dmmm",
    vocab: int = 384,
    hidden: int = 64,
    heads: int = 8,
    kv_heads: int = 2,
    head_dim: int = 32,
    rotary_dim: int = 16,
    index_dim: int = 32,
    block: int = 16,
    topk: int = 3,
    local: int = 1,
    experts: int = 8,
    experts_per_token: int = 2,
    **more: Any,
) -> dict[str, Any]:
    """Arguments of transformers' text config. layers: f(ull) or s(parse) each; mlps: d(ense) or m(oe) each."""
    values: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 48,
        "dense_intermediate_size": 96,
        "shared_intermediate_size": 32,
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": 4096,
        "num_local_experts": experts,
        "num_experts_per_tok": experts_per_token,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rotary_dim": rotary_dim,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "partial_rotary_factor": rotary_dim / head_dim,
        },
        "layer_types": ["minimax_m3_sparse" if kind == "s" else "full_attention" for kind in layers],
        "mlp_layer_types": ["sparse" if kind == "m" else "dense" for kind in mlps],
        "index_n_heads": kv_heads,
        "index_head_dim": index_dim,
        "index_block_size": block,
        "index_topk_blocks": topk,
        "index_local_blocks": local,
    }
    return {**values, **more}


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Give every tensor information: norm weights and router biases start at zero, which would hide a missing (1 + w)
    or a missing bias."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(model.state_dict().items()):
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("e_score_correction_bias"):
                tensor.copy_(0.2 * noise)
            elif tensor.ndim < 2:
                tensor.copy_(0.3 * noise)
            else:
                tensor.copy_(noise * 1.3 / tensor.shape[-1] ** 0.5)


def build(config: dict[str, Any], seed: int = 0) -> Any:
    """transformers' text-only class in fp32, randomised."""
    model = m3.MiniMaxM3VLForCausalLM._from_config(MiniMaxM3VLTextConfig(**config), attn_implementation="eager")
    randomise(model, seed)
    return model.eval()


def build_vision(config: dict[str, Any], seed: int = 0) -> Any:
    """The vision-language class around the same text model; `save_pretrained` writes the published names."""
    outer = MiniMaxM3VLConfig(text_config=config, vision_config=VISION, projector_hidden_size=config["hidden_size"])
    model = m3.MiniMaxM3SparseForConditionalGeneration._from_config(outer, attn_implementation="eager")
    randomise(model, seed)
    return model.eval()


def save(model: Any, directory: Path, **kwargs: Any) -> Path:
    model.save_pretrained(directory, **kwargs)
    return directory


def cached(cache: object) -> dict[str, Any]:
    """Arguments of a transformers model, or of its `generate`, that make it use this cache."""
    return {"use_cache": True, CACHE: cache}


@dataclass
class Choices:
    """What a run selected, per layer: blocks int32 [T, H_kv, k] (ascending, -1 last) and experts int64 [T, k]."""

    blocks: dict[int, Tensor]
    experts: dict[int, Tensor]


@torch.no_grad()
def run(model: Any, tokens: Tensor, *, force: Choices | None = None) -> tuple[Tensor, Choices]:
    """One full prefill: fp32 logits [T, V] and what was chosen, or with `force` what would have been."""
    made, handles = Choices({}, {}), []
    for i, layer in enumerate(text_model(model).layers):
        if layer.self_attn.indexer is not None:
            handles.append(layer.self_attn.indexer.register_forward_hook(_block_hook(made, force, i)))
        if hasattr(layer.mlp, "gate"):
            handles.append(layer.mlp.gate.register_forward_hook(_expert_hook(made, force, i)))
    try:
        logits = model(tokens[None], use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return logits.float(), made


def text_model(model: Any) -> Any:
    return getattr(model.model, "language_model", model.model)


def canonical_ids(blocks: Tensor, topk: int) -> Tensor:
    """transformers' [1, H, T, <=k] in score order -> [T, H, k]: int32, ascending, -1 at the end."""
    padded = torch.nn.functional.pad(blocks[0], (0, topk - blocks.shape[-1]), value=-1)
    last = torch.iinfo(torch.int64).max
    ids = padded.masked_fill(padded < 0, last).sort(-1).values
    return ids.masked_fill(ids == last, -1).transpose(0, 1).to(torch.int32).contiguous()


def _block_hook(made: Choices, force: Choices | None, layer: int) -> Callable[..., Tensor]:
    def hook(indexer: Any, _args: Any, blocks: Tensor) -> Tensor:
        made.blocks[layer] = canonical_ids(blocks, indexer.topk_blocks)
        return blocks if force is None else force.blocks[layer].transpose(0, 1)[None].long()

    return hook


def _expert_hook(made: Choices, force: Choices | None, layer: int) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def hook(_router: Any, _args: Any, out: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        logits, _, made.experts[layer] = out
        if force is None:
            return out
        weights = logits.float().sigmoid().gather(1, force.experts[layer])
        return logits, weights / weights.sum(-1, keepdim=True), force.experts[layer]

    return hook


def to_dtype(model: Any, dtype: torch.dtype) -> Any:
    """A copy in `dtype`. Routers stay fp32, as the published checkpoint stores them; so do RoPE's frequencies, which a
    plain `.to` would round."""
    copied = copy.deepcopy(model).to(dtype)
    text_model(copied).rotary_emb = copy.deepcopy(text_model(model).rotary_emb)
    for i, layer in enumerate(text_model(model).layers):
        if hasattr(layer.mlp, "gate"):
            text_model(copied).layers[i].mlp.gate = copy.deepcopy(layer.mlp.gate)
    return copied
