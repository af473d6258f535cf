"""Checkpoint names -> the model's packed weights. Only this file and transformers_names.py know their names.

Two dialects are read, tensor by tensor, and turned into one *canonical* name (the published one without its prefix):

    published      language_model.model.layers.3.block_sparse_moe.experts.7.w1.weight, ...self_attn.index_q_proj.weight
    transformers   model.layers.3.mlp.experts.gate_up_proj [E, 2I, h], ...self_attn.indexer.q_proj.weight

Ignored by rule: the vision tower and its projectors (`vision_tower.`, `multi_modal_projector.`, `patch_merge_mlp.`),
multi-token prediction (`mtp.`), and index tensors when the config says `use_sparse_attention: false`. Every other
tensor must be known and have its exact shape before the first one is read.

Legend: h hidden size, I intermediate size, E experts, D head dim, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping

import torch
from torch import Tensor

from longsight.model.attention import Attention, Indexer
from longsight.model.checkpoint import STORED_DTYPES, Checkpoint
from longsight.model.config import ModelConfig
from longsight.model.decoder import Weights
from longsight.model.errors import CheckpointError
from longsight.model.layers import DecoderLayer
from longsight.model.moe import GatedMlp, MixtureOfExperts, Router
from longsight.ops import PackedExperts, PackedLinear

Progress = Callable[[int, int], None]  # (bytes read, bytes to read)
Shapes = Iterator[tuple[str, tuple[int, ...]]]

TEXT_PREFIXES = ("language_model.model.", "model.language_model.", "language_model.", "model.")
MEDIA_PREFIXES = ("vision_tower.", "multi_modal_projector.", "patch_merge_mlp.")
RENAMES = (
    (".self_attn.indexer.", ".self_attn.index_"),
    (".mlp.gate.", ".block_sparse_moe.gate."),
    (".mlp.experts.", ".block_sparse_moe.experts."),
    (".mlp.shared_experts.", ".block_sparse_moe.shared_experts."),
    (".block_sparse_moe.gate.e_score_correction_bias", ".block_sparse_moe.e_score_correction_bias"),
)
INDEX_TENSOR = re.compile(r"layers\.\d+\.self_attn\.index_[qk]_(proj|norm)\.weight")
SHOWN = 6  # tensors of one kind that an error message names


def canonical(name: str) -> str | None:
    """The published name without prefix; None for a tensor that the text model does not need."""
    for prefix in TEXT_PREFIXES:
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            break
    if name.startswith((*MEDIA_PREFIXES, "mtp.")):
        return None
    for old, new in RENAMES:
        name = name.replace(old, new)
    return name


def load_weights(
    checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype, progress: Progress | None = None
) -> Weights:
    """Check every name, shape and dtype; then read, convert to `dtype` and pack one weight after the other.

    Raises CheckpointError naming the tensors that are missing, unexpected, misshapen or stored in a dtype other than
    bfloat16, float16 and float32.
    """
    names = checked_names(checkpoint, config)
    reader = _Reader(checkpoint, names, dtype, progress)
    layers = tuple(_layer(reader, config, i) for i in range(config.num_layers))
    norm, embedding = reader.plain("norm.weight"), reader.plain("embed_tokens.weight")
    if config.tie_word_embeddings:
        head = reader.pack(embedding)
    else:
        head = reader.linear("lm_head.weight")
    checkpoint.close()
    return Weights(embedding, layers, norm, head, reader.kept_bytes)


def checked_names(checkpoint: Checkpoint, config: ModelConfig) -> dict[str, str]:
    """Canonical name -> name in the checkpoint of all that the model needs; nothing is read.

    Raises CheckpointError naming the tensors that are missing, unexpected, misshapen or stored in an unsupported dtype.
    """
    names = _canonical_names(checkpoint, config)
    _check(checkpoint, config, expected_tensors(config, names), names)
    return names


def _canonical_names(checkpoint: Checkpoint, config: ModelConfig) -> dict[str, str]:
    """Canonical name -> name in the checkpoint."""
    names: dict[str, str] = {}
    for stored in checkpoint.shapes:
        name = canonical(stored)
        if name is None or (config.sparse_disabled and INDEX_TENSOR.fullmatch(name)):
            continue
        if name in names:
            raise CheckpointError(f"{checkpoint.path}: {names[name]!r} and {stored!r} are two names of one tensor")
        names[name] = stored
    return names


def expected_tensors(config: ModelConfig, present: Container[str]) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of all that a model needs.

    `present`: the checkpoint's canonical names, which decide between the fused and the split form of gate and up.
    """
    return dict(_expected(config, present))


def _expected(config: ModelConfig, present: Container[str]) -> Shapes:
    h = config.hidden_size
    yield "embed_tokens.weight", (config.vocab_size, h)
    yield "norm.weight", (h,)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", (config.vocab_size, h)
    for i in range(config.num_layers):
        layer = f"layers.{i}."
        yield f"{layer}input_layernorm.weight", (h,)
        yield f"{layer}post_attention_layernorm.weight", (h,)
        yield from _expected_attention(config, i)
        if config.mlp_kinds[i] == "dense":
            yield from _expected_mlp(f"{layer}mlp.", h, config.dense_intermediate_size, present)
        else:
            moe = f"{layer}block_sparse_moe."
            yield f"{moe}gate.weight", (config.num_experts, h)
            yield f"{moe}e_score_correction_bias", (config.num_experts,)
            yield from _expected_mlp(f"{moe}shared_experts.", h, config.shared_intermediate_size, present)
            yield from _expected_experts(f"{moe}experts.", config, present)


def _expected_attention(config: ModelConfig, i: int) -> Shapes:
    attention, h, dim = f"layers.{i}.self_attn.", config.hidden_size, config.head_dim
    yield f"{attention}q_proj.weight", (config.num_heads * dim, h)
    yield f"{attention}k_proj.weight", (config.num_kv_heads * dim, h)
    yield f"{attention}v_proj.weight", (config.num_kv_heads * dim, h)
    yield f"{attention}o_proj.weight", (h, config.num_heads * dim)
    yield f"{attention}q_norm.weight", (dim,)
    yield f"{attention}k_norm.weight", (dim,)
    if config.attention_kinds[i] == "sparse":
        yield f"{attention}index_q_proj.weight", (config.num_kv_heads * config.index_dim, h)
        yield f"{attention}index_k_proj.weight", (config.index_dim, h)
        yield f"{attention}index_q_norm.weight", (config.index_dim,)
        yield f"{attention}index_k_norm.weight", (config.index_dim,)


def _expected_mlp(prefix: str, h: int, width: int, present: Container[str]) -> Shapes:
    if f"{prefix}gate_up_proj.weight" in present:
        yield f"{prefix}gate_up_proj.weight", (2 * width, h)
    else:
        yield f"{prefix}gate_proj.weight", (width, h)
        yield f"{prefix}up_proj.weight", (width, h)
    yield f"{prefix}down_proj.weight", (h, width)


def _expected_experts(prefix: str, config: ModelConfig, present: Container[str]) -> Shapes:
    experts, h, width = config.num_experts, config.hidden_size, config.intermediate_size
    if f"{prefix}gate_up_proj" in present or f"{prefix}down_proj" in present:
        yield f"{prefix}gate_up_proj", (experts, 2 * width, h)
        yield f"{prefix}down_proj", (experts, h, width)
        return
    for e in range(experts):
        yield f"{prefix}{e}.w1.weight", (width, h)
        yield f"{prefix}{e}.w3.weight", (width, h)
        yield f"{prefix}{e}.w2.weight", (h, width)


def _check(
    checkpoint: Checkpoint, config: ModelConfig, wanted: Mapping[str, tuple[int, ...]], names: Mapping[str, str]
) -> None:
    problems = []
    missing = [name for name in wanted if name not in names]
    if missing:
        problems.append(f"missing {_list(missing)}")
        if any(INDEX_TENSOR.fullmatch(name) for name in missing):
            problems.append(
                "a sparse layer cannot choose blocks without its index tensors, and is never run as a dense one"
            )
    unexpected = [names[name] for name in names if name not in wanted]
    if unexpected:
        problems.append(f"unexpected {_list(unexpected)}")
        if any(INDEX_TENSOR.fullmatch(name) for name in names if name not in wanted):
            problems.append("the config calls a layer with index tensors full attention")
    both = [name for name in wanted if name in names]
    shapes = [
        f"{names[name]} {list(checkpoint.shapes[names[name]])} (expected {list(wanted[name])})"
        for name in both
        if checkpoint.shapes[names[name]] != wanted[name]
    ]
    if shapes:
        problems.append(f"wrong shape: {_list(shapes)}")
    dtypes = [
        f"{names[name]} {checkpoint.dtypes[names[name]]}"
        for name in both
        if checkpoint.dtypes[names[name]] not in STORED_DTYPES
    ]
    if dtypes:
        problems.append(f"unsupported dtype (accepted: {', '.join(STORED_DTYPES)}): {_list(dtypes)}")
    if problems:
        raise CheckpointError(f"{checkpoint.path} does not match its config: " + "; ".join(problems))


def _list(items: list[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more


class _Reader:
    """Reads tensors by canonical name in the model's dtype, keeps count, and packs."""

    def __init__(
        self, checkpoint: Checkpoint, names: Mapping[str, str], dtype: torch.dtype, progress: Progress | None
    ) -> None:
        self.checkpoint, self.names, self.dtype, self.progress = checkpoint, names, dtype, progress
        self.kept_bytes = 0
        self._done, self._total = 0, sum(checkpoint.nbytes(name) for name in names.values())

    def has(self, name: str) -> bool:
        return name in self.names

    def stored(self, name: str) -> Tensor:
        """A tensor that may alias the mapped file, in the file's dtype: convert, pack or copy it."""
        stored = self.names[name]
        tensor = self.checkpoint.read(stored)
        self._done += self.checkpoint.nbytes(stored)
        if self.progress is not None:
            self.progress(self._done, self._total)
        return tensor

    def plain(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of our own, unpacked."""
        tensor = self.stored(name).to(dtype or self.dtype, copy=True)
        self.kept_bytes += tensor.nbytes
        return tensor

    def pack(self, *parts: Tensor) -> PackedLinear:
        packed = PackedLinear.from_dense(*parts)
        self.kept_bytes += packed.data.nbytes
        return packed

    def linear(self, *names: str, dtype: torch.dtype | None = None) -> PackedLinear:
        """One packed weight of the tensors' rows, in order."""
        return self.pack(*(self.stored(name).to(dtype or self.dtype) for name in names))

    def gate_up(self, prefix: str) -> PackedLinear:
        if self.has(f"{prefix}gate_up_proj.weight"):
            return self.linear(f"{prefix}gate_up_proj.weight")
        return self.linear(f"{prefix}gate_proj.weight", f"{prefix}up_proj.weight")

    def experts(self, prefix: str, count: int) -> PackedExperts:
        if self.has(f"{prefix}gate_up_proj"):
            gate_up = tuple(self.pack(expert.to(self.dtype)) for expert in self.stored(f"{prefix}gate_up_proj"))
            down = tuple(self.pack(expert.to(self.dtype)) for expert in self.stored(f"{prefix}down_proj"))
            return PackedExperts(gate_up, down)
        return PackedExperts(
            tuple(self.linear(f"{prefix}{e}.w1.weight", f"{prefix}{e}.w3.weight") for e in range(count)),
            tuple(self.linear(f"{prefix}{e}.w2.weight") for e in range(count)),
        )


def _layer(reader: _Reader, config: ModelConfig, i: int) -> DecoderLayer:
    layer = f"layers.{i}."
    return DecoderLayer(
        reader.plain(f"{layer}input_layernorm.weight"),
        _attention(reader, config, i),
        reader.plain(f"{layer}post_attention_layernorm.weight"),
        _mlp(reader, config, f"{layer}mlp.") if config.mlp_kinds[i] == "dense" else _moe(reader, config, layer),
        config.rms_norm_eps,
    )


def _attention(reader: _Reader, config: ModelConfig, i: int) -> Attention:
    prefix, kv_width = f"layers.{i}.self_attn.", config.num_kv_heads * config.head_dim
    parts = {"q": config.num_heads * config.head_dim, "k": kv_width, "v": kv_width}
    indexer = None
    if config.attention_kinds[i] == "sparse":
        parts |= {"index_q": config.num_kv_heads * config.index_dim, "index_k": config.index_dim}
        indexer = Indexer(
            reader.plain(f"{prefix}index_q_norm.weight"),
            reader.plain(f"{prefix}index_k_norm.weight"),
            config.topk_blocks,
            config.local_blocks,
            config.init_blocks,
        )
    return Attention(
        i,
        reader.linear(*(f"{prefix}{part}_proj.weight" for part in parts)),
        reader.linear(f"{prefix}o_proj.weight"),
        tuple(parts.values()),
        reader.plain(f"{prefix}q_norm.weight"),
        reader.plain(f"{prefix}k_norm.weight"),
        config.head_dim,
        config.rms_norm_eps,
        indexer,
    )


def _mlp(reader: _Reader, config: ModelConfig, prefix: str) -> GatedMlp:
    down = reader.linear(f"{prefix}down_proj.weight")
    return GatedMlp(reader.gate_up(prefix), down, config.swiglu_alpha, config.swiglu_limit)


def _moe(reader: _Reader, config: ModelConfig, layer: str) -> MixtureOfExperts:
    prefix = f"{layer}block_sparse_moe."
    router = Router(
        # fp32 whatever the model's dtype: rounding the router moves tokens to other experts.
        reader.linear(f"{prefix}gate.weight", dtype=torch.float32),
        reader.plain(f"{prefix}e_score_correction_bias", torch.float32),
        config.experts_per_token,
        config.routed_scaling_factor,
    )
    experts = reader.experts(f"{prefix}experts.", config.num_experts)
    return MixtureOfExperts(router, experts, _mlp(reader, config, f"{prefix}shared_experts."))
