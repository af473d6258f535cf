"""The weights of the constructed checkpoint, as formulas.

Hidden state, 384 channels: token code A (0..127), S_q (128..191), S_k (192..255), output OUT (256..383). S_k is a key's
signature, the mix of the MATCH tokens before it; S_q with the token's own code is a query's, itself included, so that a
query equals the key of the token that followed the same text.

The key trick of layer 0: RoPE turns channel pair f by theta_f * position, so a query R(a, i) and a key R(a, 0) score
sum_f a_f^2 cos(theta_f (d - i)) at distance d, which peaks sharply at d = i whatever the tokens are.
"""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

VOCAB = 272  # 256 bytes and 16 special tokens
HIDDEN, CODE, SIGNATURE = 384, 128, 64
A, S_Q, S_K, OUT = slice(0, 128), slice(128, 192), slice(192, 256), slice(256, 384)
GROUP, HEAD_DIM, ROTARY = 16, 128, 64  # GROUP query heads per key/value head, one for each distance
MATCH = 16  # tokens of context that a signature holds
DECAY = 0.65  # weight of a token relative to the one after it, squared
THETA = 5e6
MLP_WIDTH = 32
# Every embedding has squared norm 128 in 384 channels, so the first RMSNorm multiplies by this.
FIRST_NORM = math.sqrt(HIDDEN / CODE)


def tensors(kv_heads: int = 1) -> dict[str, Tensor]:
    """Every weight in fp32, under its published name. With more than one key/value head the groups of layer 0 repeat
    each other and only the first is read; those of layer 1 are averaged."""
    codes = token_codes()
    heads = GROUP * kv_heads
    weights = [torch.tensor(math.sqrt(DECAY**i * (1 - DECAY) / (1 - DECAY**MATCH))).bfloat16() for i in range(MATCH)]
    mix = [_distance_code(i, float(weight)) for i, weight in enumerate(weights)]  # M_i [64, 128]
    pass_part = slice(ROTARY, HEAD_DIM)
    eye = torch.eye(CODE)

    # Layer 0: head j looks j + 1 tokens back, by rotation alone.
    near = torch.zeros(32)
    near[0], near[1:20] = math.sqrt(0.4), math.sqrt(0.6 / 19)
    slow = torch.zeros(32)  # falls with distance: the index branch picks the most recent blocks
    slow[13:] = 1.0
    q0 = torch.zeros(heads, HEAD_DIM, HIDDEN)
    for head in range(heads):
        q0[head, :ROTARY, 0] = _rotated(near, head % GROUP + 1)
    k0, index0 = torch.zeros(HEAD_DIM, HIDDEN), torch.zeros(HEAD_DIM, HIDDEN)
    k0[:ROTARY, 0], index0[:ROTARY, 0] = _rotated(near, 0), _rotated(slow, 0)
    o0 = torch.zeros(HIDDEN, heads, HEAD_DIM)
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
    o1 = torch.zeros(HIDDEN, heads, HEAD_DIM)
    o1[OUT] = (4 / heads) * eye[:, None].expand(CODE, heads, HEAD_DIM)

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
        (1, q1.repeat(heads, 1), k1, q1, k1, o1, 15.0),
    ):
        name = f"{prefix}layers.{layer}."
        # The gain of q_norm and k_norm is what makes the softmax pick one key; the index branch only ranks.
        attention = {
            "q_proj": q,
            "k_proj": k.repeat(kv_heads, 1),
            "v_proj": v.repeat(kv_heads, 1),
            "o_proj": o.flatten(1),
            "index_q_proj": index_q.repeat(kv_heads, 1),
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
