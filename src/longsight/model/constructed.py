"""A checkpoint written by formula, not trained: it continues a text with what followed the best earlier match.

Two layers of exact MiniMax-M3 arithmetic. Token ids are bytes.

- Layer 0 has one head per distance 1..16. Rotation alone makes head i attend to the token i places back, so each token
  collects a *signature* of the 16 tokens before it, S_k (for itself as a key) and S_q (as a query, itself included),
  nearer tokens weighing more.
- Layer 1 compares signatures without rotation. Its index branch finds the block whose token had the most similar past,
  its main branch attends to that token with a very peaked softmax, copies its code, and the output matrix reads it as
  the next token.

The answer is right only if the index branch picks the right block among all, which makes the model a measuring
instrument. It knows nothing, and where no earlier text matches it is confidently wrong. MLPs are present and all zero.

Hidden state, 384 channels: token code A (0..127), S_q (128..191), S_k (192..255), output OUT (256..383).
"""

from __future__ import annotations

import json
import math
import os
import random
import tempfile
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from longsight.model.tokenizer import byte_characters

VERSION = 1  # raise it when the written bytes change: a cached checkpoint of another version is written anew
VOCAB, BOS, EOS = 272, 256, 257
HIDDEN, CODE, SIGNATURE = 384, 128, 64
A, S_Q, S_K, OUT = slice(0, 128), slice(128, 192), slice(192, 256), slice(256, 384)
HEADS, HEAD_DIM, ROTARY = 16, 128, 64
MATCH = 16  # tokens of context that a signature holds
DECAY = 0.65  # weight of a token relative to the one after it, squared
THETA = 5e6
MLP_WIDTH = 32
# Room for an answer after a prompt of 2^20 tokens.
MAX_POSITIONS = (1 << 20) + 8192
# Every embedding has squared norm 128 of 384 channels, so the first RMSNorm multiplies by this.
FIRST_NORM = math.sqrt(HIDDEN / CODE)


def constructed_path() -> Path:
    """The checkpoint in the user's cache directory, written when it is missing or of another version (0.1 s)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = cache / "longsight" / f"constructed-v{VERSION}"
    if (target / "config.json").exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and renamed, so that another process never sees half of it.
    staging = Path(tempfile.mkdtemp(dir=target.parent))
    write_constructed(staging)
    try:
        staging.rename(target)
    except OSError:  # another process was first
        for file in staging.iterdir():
            file.unlink()
        staging.rmdir()
    return target


def write_constructed(directory: str | Path, *, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write the whole checkpoint, the same bytes every time."""
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    save_file({name: t.to(dtype).contiguous() for name, t in tensors().items()}, path / "model.safetensors")
    _write_tokenizer(path / "tokenizer.json")
    _write_json(path / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS})
    # The model continues the text it is given, so a conversation is simply its contents in order.
    (path / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    _write_json(path / "config.json", config(dtype))
    return path


def config(dtype: torch.dtype = torch.bfloat16) -> dict[str, object]:
    """config.json in the published form."""
    text = {
        "architectures": ["MiniMaxM3SparseForCausalLM"],
        "model_type": "minimax_m3_vl_text",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "head_dim": HEAD_DIM,
        "intermediate_size": MLP_WIDTH,
        "dense_intermediate_size": MLP_WIDTH,
        "shared_intermediate_size": MLP_WIDTH,
        "n_shared_experts": 1,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "routed_scaling_factor": 2.0,
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
        "hidden_act": "swigluoai",
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "rms_norm_eps": 1e-6,
        "use_gemma_norm": True,
        "use_qk_norm": True,
        "qk_norm_type": "per_head",
        "attention_output_gate": False,
        "rope_theta": THETA,
        "rotary_dim": ROTARY,
        "partial_rotary_factor": ROTARY / HEAD_DIM,
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "moe_layer_freq": [0, 0],
        "torch_dtype": str(dtype).removeprefix("torch."),
        "sparse_attention_config": {
            "use_sparse_attention": True,
            "sparse_attention_freq": [1, 1],
            "sparse_disable_index_value": [1, 1],
            "sparse_num_index_heads": 1,
            "sparse_index_dim": HEAD_DIM,
            "sparse_block_size": 128,
            "sparse_topk_blocks": 16,
            "sparse_local_block": 1,
            "sparse_init_block": 0,
            "sparse_score_type": "max",
        },
    }
    return {
        "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
        "model_type": "minimax_m3_vl",
        "torch_dtype": text["torch_dtype"],
        "text_config": text,
    }


def tensors() -> dict[str, Tensor]:
    """Every weight in fp32, under its published name."""
    codes = token_codes()
    weights = [torch.tensor(math.sqrt(DECAY**i * (1 - DECAY) / (1 - DECAY**MATCH))).bfloat16() for i in range(MATCH)]
    mix = [_distance_code(i, float(weight)) for i, weight in enumerate(weights)]  # M_i [64, 128]
    pass_part = slice(ROTARY, HEAD_DIM)
    eye = torch.eye(CODE)

    # Layer 0: head j looks j + 1 tokens back, by rotation alone.
    near = torch.zeros(32)
    near[0], near[1:20] = math.sqrt(0.4), math.sqrt(0.6 / 19)
    slow = torch.zeros(32)  # falls with distance: the index branch picks the most recent blocks
    slow[13:] = 1.0
    q0 = torch.zeros(HEADS, HEAD_DIM, HIDDEN)
    for head in range(HEADS):
        q0[head, :ROTARY, 0] = _rotated(near, head + 1)
    k0, index0 = torch.zeros(HEAD_DIM, HIDDEN), torch.zeros(HEAD_DIM, HIDDEN)
    k0[:ROTARY, 0], index0[:ROTARY, 0] = _rotated(near, 0), _rotated(slow, 0)
    o0 = torch.zeros(HIDDEN, HEADS, HEAD_DIM)
    for i in range(1, MATCH):
        o0[S_Q, i - 1] = mix[i]
    for i in range(1, MATCH + 1):
        o0[S_K, i - 1] = mix[i - 1]

    # Layer 1: compare signatures in the channels that rotation leaves alone, copy the token code that follows.
    q1, k1 = torch.zeros(HEAD_DIM, HIDDEN), torch.zeros(HEAD_DIM, HIDDEN)
    q1[pass_part, S_Q] = torch.eye(SIGNATURE)
    q1[pass_part, A] = FIRST_NORM * mix[0]  # the token itself, distance 0, on the scale of what heads return
    k1[pass_part, S_K] = torch.eye(SIGNATURE)
    v = torch.zeros(HEAD_DIM, HIDDEN)
    v[:, A] = eye
    o1 = torch.zeros(HIDDEN, HEADS, HEAD_DIM)
    o1[OUT] = (4 / HEADS) * eye[:, None].expand(CODE, HEADS, HEAD_DIM)

    embedding, output = torch.zeros(VOCAB, HIDDEN), torch.zeros(VOCAB, HIDDEN)
    embedding[:, A], output[:, OUT] = codes, 0.25 * codes
    prefix = "language_model.model."
    out: dict[str, Tensor] = {
        f"{prefix}embed_tokens.weight": embedding,
        f"{prefix}norm.weight": torch.zeros(HIDDEN),
        "language_model.lm_head.weight": output,
    }
    for layer, q, k, index_q, index_k, o, gain in (
        (0, q0.flatten(0, 1), k0, index0, index0, o0, 5.0),
        (1, q1.repeat(HEADS, 1), k1, q1, k1, o1, 15.0),
    ):
        name = f"{prefix}layers.{layer}."
        attention = {
            "q_proj": q,
            "k_proj": k,
            "v_proj": v,
            "o_proj": o.flatten(1),
            "index_q_proj": index_q,
            "index_k_proj": index_k,
            "q_norm": torch.full((HEAD_DIM,), gain),
            "k_norm": torch.full((HEAD_DIM,), gain),
            "index_q_norm": torch.zeros(HEAD_DIM),
            "index_k_norm": torch.zeros(HEAD_DIM),
        }
        out |= {f"{name}self_attn.{key}.weight": value for key, value in attention.items()}
        out[f"{name}input_layernorm.weight"] = torch.zeros(HIDDEN)
        out[f"{name}post_attention_layernorm.weight"] = torch.zeros(HIDDEN)
        out[f"{name}mlp.gate_proj.weight"] = torch.zeros(MLP_WIDTH, HIDDEN)
        out[f"{name}mlp.up_proj.weight"] = torch.zeros(MLP_WIDTH, HIDDEN)
        out[f"{name}mlp.down_proj.weight"] = torch.zeros(HIDDEN, MLP_WIDTH)
    return out


def token_codes() -> Tensor:
    """[VOCAB, 128] of +-1: orthogonal within each 128 ids, correlation at most 1/8 between; channel 0 is +1 for all.

    Rows of a Hadamard matrix, for each further 128 ids multiplied by a quadratic sign pattern (a Kerdock-like code).
    """
    index = torch.arange(CODE)
    bits = (index[:, None] >> torch.arange(7)) & 1  # [128, 7]
    hadamard = 1.0 - 2.0 * ((bits @ bits.T) % 2)
    rng = random.Random(0)
    groups = [hadamard]
    while len(groups) * CODE < VOCAB:
        candidates: list[tuple[float, int, Tensor]] = []
        for _ in range(400):
            form = torch.tensor([[float(j > i and rng.random() < 0.5) for j in range(7)] for i in range(7)])
            signs = 1.0 - 2.0 * (((bits.float() @ form) * bits).sum(1) % 2)
            group = hadamard * signs
            candidates.append((max(float((group @ other.T).abs().max()) for other in groups), len(candidates), group))
        groups.append(min(candidates)[2])
    return torch.cat(groups)[:VOCAB]


def _distance_code(distance: int, weight: float) -> Tensor:
    """M_i [64, 128]: 64 channels of a code (never channel 0, which is the same for every token), signed and scaled."""
    rng = random.Random(1000 + distance)
    channels = list(range(1, CODE))
    for i in range(len(channels) - 1, 0, -1):  # Fisher-Yates: only random() is the same in every Python version
        j = int(rng.random() * (i + 1))
        channels[i], channels[j] = channels[j], channels[i]
    code = torch.zeros(SIGNATURE, CODE)
    for row, channel in enumerate(channels[:SIGNATURE]):
        code[row, channel] = weight if rng.random() < 0.5 else -weight
    return code


def _rotated(amplitude: Tensor, distance: int) -> Tensor:
    """[64]: the vector that, as a query at position p, meets R(amplitude, 0) of position p - distance at its peak."""
    angle = THETA ** (-2.0 * torch.arange(32, dtype=torch.float64) / ROTARY) * distance
    return torch.cat((amplitude * angle.cos(), -amplitude * angle.sin())).float()


def _write_tokenizer(path: Path) -> None:
    vocab = {character: byte for byte, character in byte_characters().items()}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<|begin|>", "<|end|>", *(f"<|reserved_{i}|>" for i in range(VOCAB - EOS - 1))]
    tokenizer.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in names])
    path.write_text(tokenizer.to_str())


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
