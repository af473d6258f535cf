"""A tiny random M3 checkpoint of full and sparse, dense and MoE layers, written in a few milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from longsight.model import ModelConfig
from longsight.model.weights import _expected

BLOCK, TOPK = 16, 3
CONFIG = ModelConfig(
    vocab_size=272,
    hidden_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    rotary_dim=16,
    rope_theta=10_000.0,
    rms_norm_eps=1e-6,
    max_position_embeddings=4096,
    attention_kinds=("full", "sparse", "sparse"),
    mlp_kinds=("dense", "moe", "moe"),
    dense_intermediate_size=64,
    intermediate_size=32,
    shared_intermediate_size=32,
    num_experts=4,
    experts_per_token=2,
    index_dim=32,
    block_size=BLOCK,
    topk_blocks=TOPK,
    bos_token_id=256,
    eos_token_ids=(257,),
    dtype=torch.float32,
)


def write_tiny_checkpoint(directory: Path, seed: int = 0) -> Path:
    """Random weights of about unit gain, so that logits have a spread of about 1."""
    directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in _expected(CONFIG, ()):
        noise = torch.randn(shape, generator=generator)
        stored = name if name.startswith("lm_head") else f"model.{name}"
        tensors[f"language_model.{stored}"] = noise * (0.2 if len(shape) == 1 else 1.3 / shape[-1] ** 0.5)
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    return directory
