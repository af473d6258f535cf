"""The architecture of one model, as one frozen value."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from longsight.model import config_json, json_object
from longsight.model.errors import ConfigError
from longsight.ops import PageLayout
from longsight.ops.cost import AttentionShape, ModelShape

AttentionKind = Literal["full", "sparse"]
MlpKind = Literal["dense", "moe"]
MAX_GROUP = 64  # query heads per key/value head that the attention operators take


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A MiniMax-M3 text model. The config.json key of each field, where the names differ, is in config_json.py.

    attention_kinds[i] and mlp_kinds[i] describe layer i. rotary_dim: leading channels of a head that RoPE turns.
    intermediate_size is that of one routed expert. topk_blocks counts the local and initial blocks too.
    dtype: what the weights were saved for; `load_model` may be told another.
    sparse_disabled: the file says `use_sparse_attention: false`, so that every layer attends to everything and the
    checkpoint's index tensors are left unread.

    Raises ConfigError for a geometry that the operators cannot run, naming the field.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float = 5e6
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int
    attention_kinds: tuple[AttentionKind, ...]
    mlp_kinds: tuple[MlpKind, ...]
    dense_intermediate_size: int = 12288
    intermediate_size: int = 3072
    shared_intermediate_size: int = 3072
    num_experts: int = 128
    experts_per_token: int = 4
    routed_scaling_factor: float = 2.0
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0
    index_dim: int = 128
    block_size: int = 128
    topk_blocks: int = 16
    local_blocks: int = 1
    init_blocks: int = 0
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dtype: torch.dtype = torch.bfloat16
    sparse_disabled: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """From a parsed config.json, in the published shape or in the one transformers writes."""
        return cls(**config_json.fields_of(data))

    @classmethod
    def from_file(cls, path: str | Path) -> ModelConfig:
        """From a config.json or the directory that holds it. A generation_config.json beside it settles the bos and eos
        tokens, which the published config.json leaves out. Raises ConfigError."""
        path = Path(path)
        file = path / "config.json" if path.is_dir() else path
        data = dict(json_object.load(file))
        generation = file.with_name("generation_config.json")
        if generation.exists():
            data = config_json.with_generation_tokens(data, json_object.load(generation))
        return cls.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """The text model's config.json, with the published keys and those that transformers reads."""
        return config_json.to_dict(self)

    def page_layout(self, layer: int, dtype: torch.dtype | None = None, *, screened: bool = False) -> PageLayout:
        """The page geometry of one layer; `dtype` is the dtype the model runs in (default: the config's).

        screened: with 8-bit copies of index keys, where the layer has any and they are bfloat16.
        """
        index_dim, dtype = self.index_dim if self.attention_kinds[layer] == "sparse" else 0, dtype or self.dtype
        screened = screened and index_dim > 0 and dtype == torch.bfloat16
        return PageLayout(self.block_size, self.num_kv_heads, self.head_dim, index_dim, dtype, screened)

    def page_bytes(self, dtype: torch.dtype | None = None, *, screened: bool = False) -> int:
        """Bytes behind one page id: keys, values and index keys of block_size tokens in every layer."""
        return sum(self.page_layout(layer, dtype, screened=screened).page_bytes for layer in range(self.num_layers))

    def shape(self) -> ModelShape:
        """What its cost depends on (ops/cost.py)."""
        h, heads, groups = self.hidden_size, self.num_heads * self.head_dim, self.num_kv_heads
        sparse = self.attention_kinds.count("sparse")
        moe = self.mlp_kinds.count("moe")
        per_layer = 2 * heads * h + 2 * groups * self.head_dim * h
        index = (groups + 1) * self.index_dim * h
        experts = 3 * (self.experts_per_token * self.intermediate_size + self.shared_intermediate_size) * h
        linear = (
            self.num_layers * per_layer
            + sparse * index
            + (self.num_layers - moe) * 3 * self.dense_intermediate_size * h
            + moe * (experts + self.num_experts * h)
            + self.vocab_size * h
        )
        attention = AttentionShape(
            self.num_heads, groups, self.head_dim, self.index_dim, self.block_size, self.topk_blocks
        )
        return ModelShape(attention, self.num_layers - sparse, sparse, linear)

    @property
    def has_sparse(self) -> bool:
        return "sparse" in self.attention_kinds

    def __post_init__(self) -> None:
        for name, kinds, length in (
            ("attention_kinds", ("full", "sparse"), self.num_layers),
            ("mlp_kinds", ("dense", "moe"), self.num_layers),
        ):
            values = getattr(self, name)
            if len(values) != length or not set(values) <= set(kinds):
                raise ConfigError(f"{name} must hold {length} times {' or '.join(kinds)}, got {reprlib.repr(values)}")
        self._check_sizes()
        self._check_attention()
        self._check_numbers()

    def _check_sizes(self) -> None:
        positive = ["vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "max_position_embeddings"]
        multiples = ["hidden_size"]
        if "dense" in self.mlp_kinds:
            multiples.append("dense_intermediate_size")
        if "moe" in self.mlp_kinds:
            multiples += ["intermediate_size", "shared_intermediate_size"]
            positive.append("experts_per_token")
            if self.experts_per_token > self.num_experts:
                raise ConfigError(f"experts_per_token {self.experts_per_token} exceeds num_experts {self.num_experts}")
        for name in positive:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be positive")
        for name in multiples:
            value = getattr(self, name)
            if value < 16 or value % 16:
                raise ConfigError(f"{name} is {value}; the kernels need a positive multiple of 16")

    def _check_attention(self) -> None:
        if self.num_heads % self.num_kv_heads or self.num_heads > MAX_GROUP * self.num_kv_heads:
            raise ConfigError(
                f"num_heads {self.num_heads} must be 1 to {MAX_GROUP} times num_kv_heads {self.num_kv_heads}"
            )
        dims = ["head_dim", "index_dim"] if self.has_sparse else ["head_dim"]
        for name in dims:
            value = getattr(self, name)
            if not 16 <= value <= 256 or value % 16:
                raise ConfigError(f"{name} is {value}; it must be a multiple of 16 between 16 and 256")
            if self.rotary_dim > value:
                raise ConfigError(f"rotary_dim {self.rotary_dim} exceeds {name} {value}")
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ConfigError(f"rotary_dim is {self.rotary_dim}; RoPE turns pairs, so it must be positive and even")
        if self.block_size < 16 or self.block_size % 16:
            raise ConfigError(f"block_size is {self.block_size}; it must be a positive multiple of 16")
        if self.has_sparse:
            if self.local_blocks < 1 or self.init_blocks < 0:
                raise ConfigError(
                    f"local_blocks {self.local_blocks} must be at least 1, init_blocks {self.init_blocks} at least 0"
                )
            if self.local_blocks + self.init_blocks > self.topk_blocks:
                raise ConfigError(
                    f"topk_blocks {self.topk_blocks} must hold the {self.local_blocks} local and {self.init_blocks} "
                    "initial blocks"
                )

    def _check_numbers(self) -> None:
        for name in ("rope_theta", "rms_norm_eps", "swiglu_limit"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} is {value}; it must be a positive number")
        for name in ("routed_scaling_factor", "swiglu_alpha"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be a finite number")
        if self.dtype not in config_json.DTYPES.values():
            raise ConfigError(f"dtype is {self.dtype}; accepted: {', '.join(config_json.DTYPES)}")
