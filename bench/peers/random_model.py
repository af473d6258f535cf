"""A small random model in MiniMax-M3's own checkpoint format, the one that every engine is given.

Attention has M3's head shape; everything else is small, so that two cores can run it. Weights are rounded to bf16
before anything is written, and bf16 values of this size are exact in fp16 too: all engines hold the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

SMALLEST_EXACT = 2.0**-14  # below it fp16 is subnormal and drops bits that bf16 keeps


@dataclass(frozen=True)
class Geometry:
    """Sizes of the random model. The first `dense_layers` layers have full attention and a dense MLP, the rest MSA and
    experts.
    """

    vocab: int = 4096
    hidden: int = 512
    layers: int = 4
    dense_layers: int = 1
    heads: int = 64
    kv_heads: int = 4
    head_dim: int = 128
    rotary_dim: int = 64
    index_dim: int = 128
    block: int = 128
    topk: int = 16
    experts: int = 8
    experts_per_token: int = 2
    expert_width: int = 256
    dense_width: int = 1024
    rope_theta: float = 5e6
    eps: float = 1e-6
    routed_scale: float = 2.0
    context: int = 1 << 17

    def config(self) -> dict[str, Any]:
        """config.json in the published (raw) form."""
        sparse = [0] * self.dense_layers + [1] * (self.layers - self.dense_layers)
        text = {
            "architectures": ["MiniMaxM3SparseForCausalLM"],
            "model_type": "minimax_m3_vl_text",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.expert_width,
            "dense_intermediate_size": self.dense_width,
            "shared_intermediate_size": self.expert_width,
            "n_shared_experts": 1,
            "num_local_experts": self.experts,
            "num_experts_per_tok": self.experts_per_token,
            "routed_scaling_factor": self.routed_scale,
            "scoring_func": "sigmoid",
            "use_routing_bias": True,
            "hidden_act": "swigluoai",
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
            "rms_norm_eps": self.eps,
            "use_gemma_norm": True,
            "use_qk_norm": True,
            "qk_norm_type": "per_head",
            "attention_output_gate": False,
            "rope_theta": self.rope_theta,
            "partial_rotary_factor": self.rotary_dim / self.head_dim,
            "rotary_dim": self.rotary_dim,
            "max_position_embeddings": self.context,
            "tie_word_embeddings": False,
            "moe_layer_freq": sparse,
            "torch_dtype": "bfloat16",
            "sparse_attention_config": {
                "use_sparse_attention": True,
                "sparse_attention_freq": sparse,
                "sparse_disable_index_value": sparse,
                "sparse_num_index_heads": self.kv_heads,
                "sparse_index_dim": self.index_dim,
                "sparse_block_size": self.block,
                "sparse_topk_blocks": self.topk,
                "sparse_local_block": 1,
                "sparse_init_block": 0,
                "sparse_score_type": "max",
            },
        }
        return {
            "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
            "model_type": "minimax_m3_vl",
            "torch_dtype": "bfloat16",
            "tie_word_embeddings": False,
            "text_config": text,
        }

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor's disk name and shape."""
        h, wide = self.hidden, self.heads * self.head_dim
        narrow = self.kv_heads * self.head_dim
        yield "language_model.model.embed_tokens.weight", (self.vocab, h)
        yield "language_model.lm_head.weight", (self.vocab, h)
        yield "language_model.model.norm.weight", (h,)
        for layer in range(self.layers):
            at = f"language_model.model.layers.{layer}."
            yield at + "input_layernorm.weight", (h,)
            yield at + "post_attention_layernorm.weight", (h,)
            yield at + "self_attn.q_proj.weight", (wide, h)
            yield at + "self_attn.k_proj.weight", (narrow, h)
            yield at + "self_attn.v_proj.weight", (narrow, h)
            yield at + "self_attn.o_proj.weight", (h, wide)
            yield at + "self_attn.q_norm.weight", (self.head_dim,)
            yield at + "self_attn.k_norm.weight", (self.head_dim,)
            if layer < self.dense_layers:
                yield from _mlp(at + "mlp.", h, self.dense_width)
                continue
            yield at + "self_attn.index_q_proj.weight", (self.kv_heads * self.index_dim, h)
            yield at + "self_attn.index_k_proj.weight", (self.index_dim, h)
            yield at + "self_attn.index_q_norm.weight", (self.index_dim,)
            yield at + "self_attn.index_k_norm.weight", (self.index_dim,)
            yield at + "block_sparse_moe.gate.weight", (self.experts, h)
            yield at + "block_sparse_moe.e_score_correction_bias", (self.experts,)
            for expert in range(self.experts):
                for name, shape in zip(("w1", "w3", "w2"), _expert(h, self.expert_width), strict=True):
                    yield f"{at}block_sparse_moe.experts.{expert}.{name}.weight", shape
            yield from _mlp(at + "block_sparse_moe.shared_experts.", h, self.expert_width)


def _expert(hidden: int, width: int) -> tuple[tuple[int, int], ...]:
    return (width, hidden), (width, hidden), (hidden, width)


def _mlp(at: str, hidden: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in zip(("gate", "up", "down"), _expert(hidden, width), strict=True):
        yield f"{at}{name}_proj.weight", shape


def is_fp32(name: str) -> bool:
    """The router keeps fp32, as in the published checkpoint."""
    return name.endswith(("block_sparse_moe.gate.weight", "e_score_correction_bias"))


def random_weights(geometry: Geometry, seed: int = 0) -> dict[str, Tensor]:
    """Disk name -> tensor. Every tensor is random, norms and router bias too: zeros would hide a missing 1 + w or
    bias.
    """
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, shape in sorted(geometry.shapes()):
        noise = torch.randn(shape, generator=generator)
        if "norm" in name:
            noise *= 0.3
        elif name.endswith("bias"):
            noise *= 0.2
        elif "embed_tokens" not in name:
            noise *= 1.3 / shape[-1] ** 0.5
        noise[noise.abs() < SMALLEST_EXACT] = 0.0
        weights[name] = noise if is_fp32(name) else noise.to(torch.bfloat16)
    return weights


def write_checkpoint(folder: Path, geometry: Geometry, weights: dict[str, Tensor]) -> Path:
    """config.json and model.safetensors in `folder`, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(geometry.config(), indent=2))
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder
