"""How a new network's weights begin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from longsight.model import ModelConfig
from longsight.model.layers import inverse_frequencies
from longsight.train.network import Network, group_of
from longsight.train.tokenizer import BLANK

STYLE = 0.25  # of an embedding's square, how a word is written; the rest, which word it is
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
    _look_back(network, seed, [1] * (network.config.num_heads // network.config.num_kv_heads))


@torch.no_grad()
def copying(network: Network, seed: int) -> None:
    """As `previous_token`, but the group's query heads look one, two, three ... tokens back, and the output matrix
    reads the embeddings: a token that attention brings is a token that is said. For vocabularies of text, where a match
    takes several tokens, and tokens are copied that were seen a few times only."""
    random(network, seed, None)
    _copy(network, seed)


@torch.no_grad()
def spelling(network: Network, seed: int, tokens: Sequence[str]) -> None:
    """As `copying`, and tokens that spell one word, whether or not a blank is before it or it has capitals, begin
    alike: as the sum of a vector for the word and one for how it is written. What finds a word in a sentence can then
    say it in a name, where no blank is before it, without having seen every word in both.

    tokens: as the vocabulary has them, in the order of their ids, in the letters of byte-level tokenizers.
    """
    random(network, seed, None)
    weight = network.embed_tokens.weight
    spelled = [_spelled(token) for token in tokens]
    first: dict[str, int] = {}
    words = weight[[first.setdefault(word, index) for index, (word, _) in enumerate(spelled)]]
    numbers: dict[tuple[bool, str], int] = {}
    styles = [numbers.setdefault(style, len(numbers)) for _, style in spelled]
    vectors = torch.randn(len(numbers), weight.shape[1], generator=torch.Generator().manual_seed(seed + 2))
    weight[: len(tokens)] = (1 - STYLE) ** 0.5 * words + STYLE**0.5 * vectors.to(weight.device)[styles]
    _copy(network, seed)


def _spelled(token: str) -> tuple[str, tuple[bool, str]]:
    """The word of a token, and how it is written: whether after a blank, and its case. Single letters are words of
    their own, since codes are made of them."""
    blank = len(token) > 1 and token.startswith(BLANK)
    word = token.removeprefix(BLANK) if blank else token
    if len(word) == 1 or not (word.isascii() and word.isalpha()):
        return word, (blank, "other")
    case = next((name for name in ("lower", "title", "upper") if word == getattr(word, name)()), None)
    return (word.lower(), (blank, case)) if case else (word, (blank, "other"))


def _copy(network: Network, seed: int) -> None:
    """What `copying` does to the weights of `random`."""
    config = network.config
    if not config.tie_word_embeddings:
        network.lm_head.weight.copy_(network.embed_tokens.weight * config.hidden_size**-0.5)
    _look_back(network, seed, range(1, config.num_heads // config.num_kv_heads + 1))


def _look_back(network: Network, seed: int, distances: Sequence[int]) -> None:
    """Query head i of layer 0's first group attends to the token distances[i] back."""
    config = network.config
    common = torch.randn(config.hidden_size, generator=torch.Generator().manual_seed(seed + 1))
    device = network.embed_tokens.weight.device
    network.embed_tokens.weight += common.to(device)
    direction = common / common.norm()
    attention = network.decoder_layers[0].self_attn
    attention.q_norm.weight.fill_(1.0)
    attention.k_norm.weight.fill_(1.0)
    dim = config.head_dim
    attention.k_proj.weight[:dim] = torch.outer(_back(config, 0), direction).to(device)
    for head, distance in enumerate(distances):
        weight = torch.outer(_back(config, distance), direction)
        attention.q_proj.weight[head * dim : (head + 1) * dim] = weight.to(device)


def _back(config: ModelConfig, distance: int) -> Tensor:
    """A query [D] that, after RoPE, matches the key of distance 0 best where that is `distance` positions before."""
    half = config.rotary_dim // 2
    energy = torch.tensor(ENERGY[:half])
    size = (energy / energy.sum()).sqrt()
    n = size.shape[0]
    angle = -distance * inverse_frequencies(config.rope_theta, config.rotary_dim)[:n]
    vector = torch.zeros(config.head_dim)
    vector[:n], vector[half : half + n] = size * angle.cos(), size * angle.sin()
    return vector


# Those that read no tokens.
STARTS: Mapping[str, Callable[[Network, int], None]] = {
    "random": random,
    "previous-token": previous_token,
    "copying": copying,
}
