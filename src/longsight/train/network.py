"""MiniMax-M3's text model as a torch module: the arithmetic of longsight.model, with gradients, over packed documents.

Parameters carry their published names without the prefix; what is exported is `state_dict`.
Legend: T packed rows, N rows with a target, V vocabulary, h hidden size, E experts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longsight.model import ModelConfig
from longsight.model.layers import inverse_frequencies, rope_tables
from longsight.ops import UnsupportedError
from longsight.ops.training import StaticPolicy, choose
from longsight.train.attention import INDEXED, Attention, KlRows, Step
from longsight.train.batch import IGNORED, TrainBatch
from longsight.train.config import ATTENTION_MODES, AttentionMode
from longsight.train.layers import Linear, RmsNorm
from longsight.train.mlp import GatedMlp, MixtureOfExperts

HEAD_ELEMENTS = 1 << 26  # logits that exist at one time: 256 MiB in fp32


@dataclass(frozen=True)
class Output:
    """What one forward pass says.

    loss          fp32 scalar: cross entropy summed over the targets; divide by their number over all processes
    targets       int: rows with a target
    correct       int64 scalar: rows whose likeliest token is the target
    kl            fp32 [layers]: the index branch's loss of each layer, 0 where its mode has none
    captured      fp32 [layers]: share of the dense attention inside the blocks a warm-up layer would choose, over the
                  rows that leave a block out (1 if none does); NaN where it was not measured
    expert_load   int64 [layers, E]: rows that each expert took, 0 in dense MLPs; None without any mixture of experts
    """

    loss: Tensor
    targets: int
    correct: Tensor
    kl: Tensor
    captured: Tensor
    expert_load: Tensor | None


class LayerOutput(NamedTuple):
    """h [T, h], and the scalars and counts of one layer that its mode and its MLP have."""

    h: Tensor
    kl: Tensor | None
    captured: Tensor | None
    load: Tensor | None


class DecoderLayer(nn.Module):
    """h += attention(norm(h)); h += mlp(norm(h)). A layer has `mlp` or `block_sparse_moe`."""

    mlp: GatedMlp
    block_sparse_moe: MixtureOfExperts

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.routed = config.mlp_kinds[layer] == "moe"
        if self.routed:
            self.block_sparse_moe = MixtureOfExperts(config)
        else:
            self.mlp = GatedMlp(config, config.dense_intermediate_size)

    def forward(self, h: Tensor, step: Step, mode: AttentionMode, static_ids: Tensor | None) -> LayerOutput:
        """h [T, h] -> the same shape and dtype."""
        attended = self.self_attn(self.input_layernorm(h), step, mode, static_ids)
        h = h + attended.y
        x = self.post_attention_layernorm(h)
        y, load = self.block_sparse_moe(x) if self.routed else (self.mlp(x), None)
        return LayerOutput((h + y).to(h.dtype), attended.kl, attended.captured, load)


class Network(nn.Module):
    """The model in training. Parameters are fp32 whatever it computes in.

    backend: see `longsight.ops.training.choose`. checkpointing: layers forget their insides and compute them again in
    the backward pass; the same numbers for less memory. dtype: of activations and matrix products, torch.float32 or
    torch.bfloat16; norms, router, softmax and loss are fp32 in either. The attribute `static` is what mode "static"
    attends to.
    """

    inverse_frequency: Tensor

    def __init__(
        self,
        config: ModelConfig,
        backend: str | None = None,
        checkpointing: bool = False,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.config, self.checkpointing, self.dtype = config, checkpointing, dtype
        self.backend, self.backend_reason = choose(backend)
        self.topk = config.topk_blocks  # a stage may train with another number
        self.static = StaticPolicy.spread(
            config.max_position_embeddings, topk=config.topk_blocks, block_size=config.block_size
        )
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_layers))
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)
        frequencies = inverse_frequencies(config.rope_theta, config.rotary_dim)
        self.register_buffer("inverse_frequency", frequencies, persistent=False)

    def forward(
        self,
        batch: TrainBatch,
        modes: Sequence[AttentionMode],
        kl_weight: Tensor | None = None,
        kl_rows: KlRows | None = None,
        *,
        captured: bool = True,
    ) -> Output:
        """modes[i] is how layer i attends; kl_weight fp32 [T] weighs the rows in the KL (default 1/T each);
        kl_rows are compared over every key besides, in sparse layers.

        captured: whether warm-up layers measure their captured mass, which costs a selection and a sparse pass.
        Raises UnsupportedError for a batch or modes that do not fit the model.
        """
        self._check(batch, modes)
        h, layers = self._layers(batch, modes, kl_weight, kl_rows, captured)
        rows = (batch.targets != IGNORED).nonzero()[:, 0]
        loss, correct = self._loss(h[rows], batch.targets[rows])
        zero, unknown = loss.new_zeros(()), loss.new_full((), math.nan)
        return Output(
            loss=loss,
            targets=rows.shape[0],
            correct=correct,
            kl=torch.stack([zero if layer.kl is None else layer.kl for layer in layers]),
            captured=torch.stack([unknown if layer.captured is None else layer.captured for layer in layers]),
            expert_load=_stacked([layer.load for layer in layers]),
        )

    @property
    def decoder_layers(self) -> list[DecoderLayer]:
        """The layers, typed."""
        return cast(list[DecoderLayer], list(self.layers))

    @torch.no_grad()
    def logits(self, batch: TrainBatch, modes: Sequence[AttentionMode]) -> Tensor:
        """fp32 logits [T, V] of every row."""
        self._check(batch, modes)
        h, _ = self._layers(batch, modes, None, None, False)
        return self._head(h)

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Every parameter by name, in the groups that may want different optimisers; empty groups are left out.

        matrices, index_matrices: 2-D, of the layers. embedding, head. norms, index_norms: 1-D. router: the gates.
        """
        groups: dict[str, dict[str, nn.Parameter]] = defaultdict(dict)
        for name, parameter in self.named_parameters():
            groups[group_of(name)][name] = parameter
        return dict(groups)

    def balance(self, load: Tensor, rate: float) -> None:
        """Move each router's selection bias against its load: `Output.expert_load`, summed over whatever ran since."""
        for layer, counts in zip(self.decoder_layers, load, strict=True):
            if layer.routed:
                layer.block_sparse_moe.balance(counts, rate)

    def _layers(
        self,
        batch: TrainBatch,
        modes: Sequence[AttentionMode],
        kl_weight: Tensor | None,
        kl_rows: KlRows | None,
        captured: bool,
    ) -> tuple[Tensor, list[LayerOutput]]:
        cos, sin = rope_tables(batch.rope_positions, self.inverse_frequency)
        step = Step(self.backend, batch.documents, cos, sin, kl_weight, kl_rows, captured, self.topk)
        h, outputs = self.embed_tokens(batch.tokens).to(self.dtype), []
        for i, (layer, mode) in enumerate(zip(self.layers, modes, strict=True)):
            arguments = h, step, mode, self._static_ids(batch, i) if mode == "static" else None
            if self.checkpointing and torch.is_grad_enabled():
                # The KL leaves the layer as one of its outputs, so that its gradient is computed again with the rest.
                output = checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                output = layer(*arguments)
            outputs.append(output)
            h = output.h
        return h, outputs

    def _static_ids(self, batch: TrainBatch, layer: int) -> Tensor:
        config = self.config
        size, heads = config.block_size, config.num_kv_heads
        ids = self.static.blocks(batch.documents, block_size=size, topk=self.topk, kv_heads=heads, layer=layer)
        return ids.to(batch.tokens.device)

    def _head(self, h: Tensor) -> Tensor:
        weight = self.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight
        x = self.norm(h)
        return F.linear(x, weight.to(x.dtype)).float()

    def _loss(self, h: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Of rows h [N, h] with targets int64 [N]: the summed cross entropy and the number of right guesses."""
        rows = max(1, HEAD_ELEMENTS // self.config.vocab_size)
        if h.shape[0] <= rows or not torch.is_grad_enabled():
            parts = [self._loss_of(*part) for part in zip(h.split(rows), targets.split(rows), strict=True)]
        else:
            parts = [
                checkpoint(self._loss_of, *part, use_reentrant=False, preserve_rng_state=False)
                for part in zip(h.split(rows), targets.split(rows), strict=True)
            ]
        losses, correct = zip(*parts, strict=True)
        return torch.stack(losses).sum(), torch.stack(correct).sum()

    def _loss_of(self, h: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._head(h)
        return F.cross_entropy(logits, targets, reduction="sum"), (logits.detach().argmax(-1) == targets).sum()

    def _check(self, batch: TrainBatch, modes: Sequence[AttentionMode]) -> None:
        config, rows = self.config, batch.documents.rows
        if len(modes) != config.num_layers:
            raise UnsupportedError(f"modes must hold one mode per layer, {config.num_layers}, got {len(modes)}")
        for i, (mode, kind) in enumerate(zip(modes, config.attention_kinds, strict=True)):
            accepted = [m for m in ATTENTION_MODES if kind == "sparse" or m not in INDEXED]
            if mode not in accepted:
                raise UnsupportedError(
                    f"mode {mode!r} of layer {i}, which has {kind} attention: expected one of {', '.join(accepted)}"
                )
        for name in ("tokens", "targets", "rope_positions"):
            tensor = getattr(batch, name)
            if tensor.dtype != torch.int64 or tensor.shape != (rows,):
                raise UnsupportedError(f"{name} must be int64 [{rows}], got {tensor.dtype} {list(tensor.shape)}")
        if rows == 0:
            raise UnsupportedError("the batch has no rows")
        if batch.tokens.device.type == "cpu":  # elsewhere looking would wait for the device
            low, high = (int(bound) for bound in batch.tokens.aminmax())
            if low < 0 or high >= config.vocab_size:
                raise UnsupportedError(f"token ids span {low}..{high}; the vocabulary is 0..{config.vocab_size - 1}")


def group_of(name: str) -> str:
    """The group of a parameter: see `Network.parameter_groups`."""
    if name in ("embed_tokens.weight", "lm_head.weight"):
        return {"embed_tokens.weight": "embedding", "lm_head.weight": "head"}[name]
    if name.endswith("block_sparse_moe.gate.weight"):
        return "router"
    prefix = "index_" if ".self_attn.index_" in name else ""
    return prefix + ("norms" if name.endswith("norm.weight") else "matrices")


def _stacked(loads: Sequence[Tensor | None]) -> Tensor | None:
    some = next((load for load in loads if load is not None), None)
    if some is None:
        return None
    return torch.stack([torch.zeros_like(some) if load is None else load for load in loads])
