"""The random model as a GGUF file, with the names and metadata that llama.cpp's minimax-m3 loader reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from bench.peers.random_model import Geometry

ARCH = "minimax-m3"
TOP = {
    "language_model.model.embed_tokens.weight": "token_embd.weight",
    "language_model.lm_head.weight": "output.weight",
    "language_model.model.norm.weight": "output_norm.weight",
}
LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "self_attn.index_q_proj.weight": "indexer.q_proj.weight",
    "self_attn.index_k_proj.weight": "indexer.k_proj.weight",
    "self_attn.index_q_norm.weight": "indexer.q_norm.weight",
    "self_attn.index_k_norm.weight": "indexer.k_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "block_sparse_moe.gate.weight": "ffn_gate_inp.weight",
    "block_sparse_moe.e_score_correction_bias": "exp_probs_b.bias",
    "block_sparse_moe.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "block_sparse_moe.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "block_sparse_moe.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
}
EXPERT = {"w1": "ffn_gate_exps.weight", "w3": "ffn_up_exps.weight", "w2": "ffn_down_exps.weight"}
# llama.cpp's own converter keeps these in fp32 whatever the file's type.
ALWAYS_FP32 = (
    "norm.weight",
    "exp_probs_b.bias",
    "ffn_gate_inp.weight",
    "indexer.q_proj.weight",
    "indexer.k_proj.weight",
)


def gguf_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Disk names -> GGUF names: experts stacked [E, N, K], the Gemma 1 + w of every norm folded in (fp32)."""
    tensors: dict[str, Tensor] = {}
    stacks: dict[str, dict[int, Tensor]] = {}
    for name, tensor in weights.items():
        if name.endswith("norm.weight"):
            tensor = tensor.float() + 1.0
        if name in TOP:
            tensors[TOP[name]] = tensor
            continue
        found = re.fullmatch(r"language_model\.model\.layers\.(\d+)\.(.+)", name)
        if found is None:
            raise ValueError(f"no GGUF name is known for tensor {name!r}")
        layer, rest = found.groups()
        expert = re.fullmatch(r"block_sparse_moe\.experts\.(\d+)\.(w[123])\.weight", rest)
        if expert:
            stacks.setdefault(f"blk.{layer}.{EXPERT[expert[2]]}", {})[int(expert[1])] = tensor
        else:
            tensors[f"blk.{layer}.{LAYER[rest]}"] = tensor
    for name, parts in stacks.items():
        tensors[name] = torch.stack([parts[e] for e in range(len(parts))])
    return tensors


def write_gguf(
    path: Path, geometry: Geometry, weights: Mapping[str, Tensor], storage: str = "f16", *, vocabulary: bool = False
) -> Path:
    """Write `path`; `storage` is the type of the matrices, "f16" or "bf16".

    No tokenizer unless `vocabulary` is set: benches send token ids, but llama-server spells what it generates.
    """
    types = {
        "f16": (gguf.LlamaFileType.MOSTLY_F16, gguf.GGMLQuantizationType.F16),
        "bf16": (gguf.LlamaFileType.MOSTLY_BF16, gguf.GGMLQuantizationType.BF16),
    }
    if storage not in types:
        raise ValueError(f"storage {storage!r} is not one of {', '.join(types)}")
    file_type, matrix_type = types[storage]
    writer = gguf.GGUFWriter(str(path), ARCH)
    writer.add_name("random minimax-m3 for benches")
    writer.add_file_type(file_type)
    writer.add_block_count(geometry.layers)
    writer.add_context_length(geometry.context)
    writer.add_embedding_length(geometry.hidden)
    writer.add_feed_forward_length(geometry.dense_width)
    writer.add_head_count(geometry.heads)
    writer.add_head_count_kv(geometry.kv_heads)
    writer.add_key_length(geometry.head_dim)
    writer.add_value_length(geometry.head_dim)
    writer.add_layer_norm_rms_eps(geometry.eps)
    writer.add_rope_dimension_count(geometry.rotary_dim)
    writer.add_rope_freq_base(geometry.rope_theta)
    writer.add_leading_dense_block_count(geometry.dense_layers)
    writer.add_expert_count(geometry.experts)
    writer.add_expert_used_count(geometry.experts_per_token)
    writer.add_expert_feed_forward_length(geometry.expert_width)
    writer.add_expert_shared_count(1)
    writer.add_expert_weights_scale(geometry.routed_scale)
    writer.add_expert_weights_norm(True)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    indexer = {
        "head_count": geometry.kv_heads,
        "key_length": geometry.index_dim,
        "top_k": geometry.topk,
        "block_size": geometry.block,
        "local_blocks": 1,
    }
    for key, value in indexer.items():
        writer.add_uint32(f"{ARCH}.attention.indexer.{key}", value)
    writer.add_vocab_size(geometry.vocab)
    if vocabulary:
        _add_vocabulary(writer, geometry.vocab)
    else:
        writer.add_tokenizer_model("no_vocab")
    for name, tensor in gguf_tensors(weights).items():
        if name.endswith(ALWAYS_FP32):
            writer.add_tensor(name, tensor.float().numpy())
        elif storage == "f16":
            writer.add_tensor(name, tensor.to(torch.float16).numpy())
        else:
            raw = tensor.to(torch.bfloat16).contiguous().view(torch.uint16).numpy()
            writer.add_tensor(name, raw.view(np.uint8), raw_dtype=matrix_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """A SentencePiece vocabulary whose every token has a spelling of its own: <unk>, <s>, </s>, bytes, w259, w260, ..

    The 256 bytes are ordinary tokens here, not byte tokens: the server holds back a byte that is no whole character.
    """
    special = ["<unk>", "<s>", "</s>"]
    spelled = special + [f"<0x{byte:02X}>" for byte in range(256)]
    spelled += [f"\N{LOWER ONE EIGHTH BLOCK}w{i}" for i in range(len(spelled), size)]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.NORMAL] * (size - len(special))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(spelled[:size])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
