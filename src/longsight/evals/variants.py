"""The same weights under another attention: everything visible, a static pattern, another number or size of blocks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from longsight.evals.errors import EvalError
from longsight.model import Model, ModelConfig
from longsight.model.attention import OnSelect
from longsight.model.checkpoint import Checkpoint
from longsight.model.weights import Progress, load_weights
from longsight.ops import Batch, LayerPages, choose
from longsight.ops.training import StaticPolicy

FORMS = "configured, dense, static, static:window=W,stride=S,random=R, k=K, block=B, and k=K,block=B"
_SETTING = re.compile(r"(k|block|window|stride|random)=([0-9]+)")


@dataclass(frozen=True)
class Variant:
    """How a model attends while it is evaluated; the weights stay as they are.

    dense: sparse layers attend to everything; index weights are not read. topk, block_size: instead of the
    configuration's. Both are legal for any checkpoint, because no weight depends on them: topk from local_blocks +
    init_blocks up, block_size any multiple of 16. static: a pattern instead of the index branch's choice, in every
    sparse layer, within the same topk.
    """

    name: str = "configured"
    dense: bool = False
    topk: int | None = None
    block_size: int | None = None
    static: bool = False
    window: int | None = None
    stride: int | None = None
    random: int | None = None

    @classmethod
    def parse(cls, text: str) -> Variant:
        """One of FORMS. Raises EvalError."""
        kind, _, rest = text.partition(":") if text.startswith("static") else ("", "", text)
        if text in ("configured", "dense"):
            return cls(text, dense=text == "dense")
        settings = {}
        for part in rest.split(",") if rest else ():
            match = _SETTING.fullmatch(part)
            if match is None or (match[1] in ("k", "block")) == (kind == "static"):
                raise EvalError(f"no attention is called {text!r}; accepted: {FORMS}")
            settings[match[1]] = int(match[2])
        if kind not in ("", "static") or (not kind and not settings):
            raise EvalError(f"no attention is called {text!r}; accepted: {FORMS}")
        return cls(
            text,
            topk=settings.get("k"),
            block_size=settings.get("block"),
            static=kind == "static",
            window=settings.get("window"),
            stride=settings.get("stride"),
            random=settings.get("random"),
        )

    def config(self, config: ModelConfig, longest: int) -> ModelConfig:
        """The configuration to run with, room for `longest` tokens in it. Raises ConfigError."""
        changes: dict[str, object] = {}
        if self.dense:
            changes.update(attention_kinds=("full",) * config.num_layers, sparse_disabled=True)
        if self.topk is not None:
            changes["topk_blocks"] = self.topk
        if self.block_size is not None:
            changes["block_size"] = self.block_size
        # RoPE's angles are computed as they are needed: a limit is a promise, and here we look beyond it.
        changes["max_position_embeddings"] = max(config.max_position_embeddings, longest)
        return replace(config, **changes)  # type: ignore[arg-type]

    def policy(self, config: ModelConfig, longest: int, seed: int = 0) -> StaticPolicy:
        """The pattern for `longest` tokens; StaticPolicy says what stands in for what is not given."""
        return StaticPolicy.spread(
            longest,
            topk=config.topk_blocks,
            block_size=config.block_size,
            window=self.window,
            anchor_stride=self.stride,
            random=self.random,
            seed=seed,
        )

    def load(
        self,
        path: str | Path,
        *,
        longest: int,
        dtype: torch.dtype | None = None,
        backend: str | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Model:
        """The model at `path`, attending so. Raises what load_model raises, and EvalError for a variant that changes
        nothing because no layer is sparse."""
        stored = ModelConfig.from_file(path)
        if not stored.has_sparse and self.name not in ("configured", "dense"):
            raise EvalError(f"{path} has no sparse layer: {self.name!r} would change nothing")
        config = self.config(stored, longest)
        dtype = dtype or config.dtype
        chosen, reason = choose(backend)
        weights = load_weights(Checkpoint(Path(path)), config, dtype, progress)
        if self.static:
            return StaticModel(self.policy(config, longest, seed), config, weights, dtype, chosen, reason)
        return Model(config, weights, dtype, chosen, reason)


class StaticModel(Model):
    """A model whose sparse layers take the blocks of a fixed pattern; the index branch still runs, for nothing."""

    replayable = False  # the pattern is worked out in Python, step by step

    def __init__(self, policy: StaticPolicy, *model: object) -> None:
        super().__init__(*model)  # type: ignore[arg-type]
        self.static_policy = policy

    def forward(
        self,
        token_ids: Tensor,
        batch: Batch,
        cache: Sequence[LayerPages],
        *,
        logit_rows: Tensor | None = None,
        on_select: OnSelect | None = None,
    ) -> Tensor:
        """As Model.forward; on_select sees the pattern's choice."""

        def pattern(layer: int, ids: Tensor) -> Tensor:
            chosen = self.static_policy.blocks(
                batch, block_size=self.config.block_size, topk=ids.shape[2], kv_heads=ids.shape[1], layer=layer
            )
            replaced = on_select(layer, chosen) if on_select is not None else None
            return chosen if replaced is None else replaced

        return super().forward(token_ids, batch, cache, logit_rows=logit_rows, on_select=pattern)
