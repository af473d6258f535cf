"""Which places of a padded [B, T] step hold tokens: all that our attention needs to know of an attention mask.

transformers builds the mask once per forward pass and hands it to every layer unseen, so what is built here is no mask
of [queries x keys] but this record. Legend: B batch, T places per row of the batch, R tokens among the B * T places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function

from longsight.ops import UnsupportedError


@dataclass(frozen=True)
class Rows:
    """One step's places.

    real    bool [B, T]: a token, not padding; None if all are
    past    tokens that the mask shows of each row before this step; None if there was no mask
    packed  a row may hold several documents: where position ids do not rise by one, the next begins
    """

    batch: int
    places: int
    real: Tensor | None = None
    past: tuple[int, ...] | None = None
    packed: bool = False

    @classmethod
    def of_documents(cls, lengths: Sequence[int]) -> Rows:
        """Documents of these lengths, each as a row of its own, padded on the right."""
        longest = max(lengths, default=0)
        real = torch.arange(longest) < torch.tensor(lengths)[:, None]
        return cls(len(lengths), longest, None if bool(real.all()) else real)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Tokens of this step in each row."""
        if self.real is None:
            return (self.places,) * self.batch
        return tuple(self.real.sum(1).tolist())

    @cached_property
    def index(self) -> Tensor | None:
        """int64 [R]: the flat places that hold tokens; None if all do."""
        return None if self.real is None else self.real.flatten().nonzero()[:, 0]

    def tokens(self, x: Tensor) -> Tensor:
        """[B or 1, T, C] -> [R, C]."""
        flat = x.expand(self.batch, -1, -1).flatten(0, 1)
        return flat if self.index is None else flat[self.index]

    def places_of(self, x: Tensor) -> Tensor:
        """[R, C] -> [B, T, C], zero where there is no token. Differentiable."""
        if self.index is not None:
            x = x.new_zeros(self.batch * self.places, x.shape[1]).index_copy(0, self.index, x)
        return x.view(self.batch, self.places, -1)


def mask_function(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    local_size: int | None = None,
    **_unused: Any,
) -> Rows:
    """What transformers calls where it would build a mask. Raises UnsupportedError for what is not causal attention.

    attention_mask: bool [B, kv_length], False at padding, or None.
    """
    packed = False
    if local_size is not None:
        raise UnsupportedError(f"a sliding window or chunks of {local_size} tokens: longsight attention is causal")
    if mask_function is not causal_mask_function:
        # transformers joins causal and same-document masks with `and`; anything else is a mask that callers made up.
        packed = not use_vmap and attention_mask is None and mask_function.__qualname__.startswith("and_masks.")
        if not packed or q_offset or kv_length != q_length:
            raise UnsupportedError(
                "longsight attention is causal, over padded rows or packed documents; this model asks for another mask "
                f"({mask_function.__qualname__})"
            )
    if attention_mask is None:
        return Rows(batch_size, q_length, packed=packed)
    if attention_mask.shape != (batch_size, kv_length):
        raise UnsupportedError(
            f"attention_mask must be [{batch_size}, {kv_length}], past tokens included, got "
            f"{list(attention_mask.shape)}"
        )
    seen, real = attention_mask.bool().split((kv_length - q_length, q_length), 1)
    past = tuple(seen.sum(1).tolist())
    return Rows(batch_size, q_length, None if bool(real.all()) else real, past)


def document_lengths(
    rows: Rows, position_ids: Tensor | None, cu_seq_lens: Tensor | Sequence[int] | None
) -> tuple[int, ...]:
    """Tokens of each document among the packed rows: a document per row of the batch unless told otherwise.

    cu_seq_lens: the borders of documents in a batch of one row, as transformers' flattening collator gives them.
    """
    if cu_seq_lens is not None:
        borders = torch.as_tensor(cu_seq_lens).cpu()
        lengths = borders.diff()
        if (
            rows.batch != 1
            or rows.real is not None
            or borders[0] != 0
            or borders[-1] != rows.places
            or lengths.min() < 0
        ):
            raise UnsupportedError(
                f"cu_seq_lens_q must rise from 0 to {rows.places} in a batch of one row without padding, got "
                f"{borders.tolist()} with a batch of {rows.batch}"
            )
        return tuple(lengths.tolist())
    if not rows.packed or position_ids is None:
        return rows.counts
    starts = position_ids.diff(dim=1, prepend=position_ids[:, :1]) != 1
    starts[:, 0] = True
    first = starts.expand(rows.batch, -1).flatten().nonzero()[:, 0].cpu()
    return tuple(first.diff(append=torch.tensor([rows.batch * rows.places])).tolist())
