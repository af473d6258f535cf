"""The text model: embedding, layers, logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longsight.model.attention import OnSelect, Step
from longsight.model.config import ModelConfig
from longsight.model.layers import DecoderLayer, Kept, inverse_frequencies, rope_tables
from longsight.ops import Backend, Batch, LayerPages, PackedLinear, UnsupportedError


@dataclass(frozen=True)
class Weights:
    """Everything a checkpoint holds, ready to compute with. embedding [V, h], norm [h], head [V, h] packed."""

    embedding: Tensor
    layers: tuple[DecoderLayer, ...]
    norm: Tensor
    head: PackedLinear
    nbytes: int


class Model:
    """A loaded model. Stateless between calls: what a sequence remembers is in the pages that the caller owns.

    dtype: of weights, activations and pages. backend_reason: why that backend was chosen. weight_bytes: memory taken.
    replayable: every step of a shape runs the same operators, so that one may be recorded (replay.py).
    """

    replayable = True

    def __init__(
        self, config: ModelConfig, weights: Weights, dtype: torch.dtype, backend: Backend, backend_reason: str
    ) -> None:
        self.config, self.dtype = config, dtype
        self.backend, self.backend_reason = backend, backend_reason
        self.weight_bytes = weights.nbytes
        self._weights = weights
        self._inverse_frequency = inverse_frequencies(config.rope_theta, config.rotary_dim)

    def allocate_cache(self, pages: int, *, screened: bool = False) -> list[LayerPages]:
        """`pages` pages for every layer. Uninitialised: memory is taken only as pages are written."""
        config = self.config
        layouts = [config.page_layout(i, self.dtype, screened=screened) for i in range(config.num_layers)]
        return [LayerPages.allocate(layout, pages) for layout in layouts]

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Tensor,
        batch: Batch,
        cache: Sequence[LayerPages],
        *,
        logit_rows: Tensor | None = None,
        on_select: OnSelect | None = None,
    ) -> Tensor:
        """Run one step and write its keys, values and index keys to the pages that `batch` names.

        token_ids int64 [T]; logit_rows int64 [R]: packed rows to give logits for, None for all. on_select(layer, ids
        int32 [T, H_kv, k]) sees each sparse layer's choice and may return another. -> fp32 logits [R, V].

        The last layer computes only the rows whose logits are wanted, unless on_select is there to see all of them.
        Raises UnsupportedError for token ids outside the vocabulary and for arguments that do not fit together.
        """
        self.check(token_ids, batch, cache)
        if token_ids.shape[0] == 0:
            return torch.empty(0, self.config.vocab_size)
        h, cos, sin = self.inputs(token_ids, batch.positions)
        step = Step(self.backend, batch, cos, sin, on_select)
        rows, kept = logit_rows, None
        if rows is not None and on_select is None and rows.shape[0] < token_ids.shape[0]:
            kept, rows = Kept(rows, step.at(rows)), None
        h = self.layers(h, step, cache, kept)
        if rows is not None:
            h = h[rows]
        if h.shape[0] == 0:
            return torch.empty(0, self.config.vocab_size)
        return self.head(h).float()

    def inputs(self, token_ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """token_ids int64 [T], positions int32 [T] -> what the layers take: h [T, h], cos and sin fp32 [T, R/2]."""
        return self._weights.embedding[token_ids], *rope_tables(positions, self._inverse_frequency)

    def layers(self, h: Tensor, step: Step, cache: Sequence[LayerPages], kept: Kept | None = None) -> Tensor:
        """All layers: h [T, h] -> [T, h], in place; with `kept` the last one goes on with those rows only."""
        last = len(self._weights.layers) - 1
        for i, layer in enumerate(self._weights.layers):
            h = layer(h, step, cache[i], kept if i == last else None)
        return h

    def head(self, h: Tensor) -> Tensor:
        """Logits [T, V] of h [T, h], in the model's dtype."""
        return self.backend.linear(
            self.backend.rms_norm(h, self._weights.norm, self.config.rms_norm_eps), self._weights.head
        )

    def check(self, token_ids: Tensor, batch: Batch, cache: Sequence[LayerPages]) -> None:
        """Raise UnsupportedError for token ids outside the vocabulary and for arguments that do not fit together."""
        if token_ids.dtype != torch.int64 or token_ids.shape != (batch.rows,):
            raise UnsupportedError(
                f"token_ids must be int64 [{batch.rows}], got {token_ids.dtype} {list(token_ids.shape)}"
            )
        if len(cache) != self.config.num_layers:
            raise UnsupportedError(f"the cache must hold {self.config.num_layers} layers, got {len(cache)}")
        if token_ids.shape[0]:
            low, high = (int(bound) for bound in token_ids.aminmax())
            if low < 0 or high >= self.config.vocab_size:
                raise UnsupportedError(
                    f"token ids span {low}..{high}; the vocabulary is 0..{self.config.vocab_size - 1}"
                )
