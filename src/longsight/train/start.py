"""How a new network's weights begin."""

from __future__ import annotations

import torch
from torch import Tensor

from longsight.model.layers import inverse_frequencies
from longsight.train.network import Network, group_of

ENERGY = (0.5, 0.2, 0.12, 0.08, 0.06, 0.04)  # of the previous-token head on the fastest rotary pairs


@torch.no_grad()
def random(network: Network, seed: int, std: float | None = 0.02) -> None:
    """Embeddings and matrices normal with deviation `std` (None: one over the root of their inputs, embeddings 1), norm
    weights and selection biases zero. Matrices that write to the residual stream are smaller by the root of how many
    there are, so that its size does not grow with depth. The same seed gives the same weights."""
    generator = torch.Generator().manual_seed(seed)
    residual = (2 * network.config.num_layers) ** -0.5
    for name, parameter in network.named_parameters():
        if parameter.ndim < 2:
            parameter.zero_()
            continue
        deviation = std if std is not None else 1.0 if group_of(name) == "embedding" else parameter.shape[1] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight", "w2.weight")):
            deviation *= residual
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
    for name, buffer in network.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.zero_()


@torch.no_grad()
def previous_token(network: Network, seed: int) -> None:
    """`random` with unit embeddings, and layer 0's first key/value group attending to the token before.

    Every token's embedding gets one common random vector. From that direction the group's keys are a fixed vector `a`
    and its queries `a` turned one position back; norm weights of one sharpen the match. Rotation alone cannot say "one
    back" from embeddings without a common part, and small models learn retrieval much sooner where a layer reads the
    token before.
    """
    random(network, seed, None)
    config = network.config
    common = torch.randn(config.hidden_size, generator=torch.Generator().manual_seed(seed + 1))
    device = network.embed_tokens.weight.device
    network.embed_tokens.weight += common.to(device)
    direction = common / common.norm()
    attention = network.decoder_layers[0].self_attn
    attention.q_norm.weight.fill_(1.0)
    attention.k_norm.weight.fill_(1.0)
    key, query = _one_back(config.head_dim, config.rotary_dim, config.rope_theta)
    group = config.num_heads // config.num_kv_heads
    attention.k_proj.weight[: config.head_dim] = torch.outer(key, direction).to(device)
    attention.q_proj.weight[: group * config.head_dim] = torch.outer(query, direction).repeat(group, 1).to(device)


def _one_back(head_dim: int, rotary_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """A key and a query, both [D], whose product after RoPE is largest where the key is one position before."""
    half = rotary_dim // 2
    energy = torch.tensor(ENERGY[:half])
    size = (energy / energy.sum()).sqrt()
    key, query = torch.zeros(head_dim), torch.zeros(head_dim)
    key[: size.shape[0]] = size
    angle = -inverse_frequencies(theta, rotary_dim)[: size.shape[0]]
    query[: size.shape[0]], query[half : half + size.shape[0]] = size * angle.cos(), size * angle.sin()
    return key, query
