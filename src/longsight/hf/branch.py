"""The index branch that conversion adds to a model's attention, and the attention module that it then is.

Legend: n rows, C hidden size, H_kv key/value heads, D_idx index dim, r_main and r the rotated channels of the main and
of the index heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from longsight.hf.attention import Branches, forward
from longsight.hf.training import Trace, traced_forward
from longsight.ops import UnsupportedError
from longsight.train.layers import Linear, RmsNorm


class IndexBranch(nn.Module):
    """One index query head per key/value head, one index key head for all; the names are those of M3's indexer.

    It computes in the dtype of what it is given: its weights are fp32 while it is trained beside a bf16 backbone.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        dim, eps = config.index_head_dim, config.rms_norm_eps
        self.q_proj = Linear(config.hidden_size, config.num_key_value_heads * dim)
        self.k_proj = Linear(config.hidden_size, dim)
        self.q_norm, self.k_norm = RmsNorm(dim, eps), RmsNorm(dim, eps)
        self.head_dim, self.rotary_dim = dim, config.index_rotary_dim
        self.block_size, self.topk_blocks = config.index_block_size, config.index_topk_blocks
        self.local_blocks = config.index_local_blocks

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Random matrices, norms without effect: the branch before it learns."""
        for projection in (self.q_proj, self.k_proj):
            projection.weight.normal_(std=projection.in_features**-0.5)
        self.q_norm.weight.zero_()
        self.k_norm.weight.zero_()

    def rotary_table(self, table: Tensor) -> Tensor:
        """The index heads' cos or sin [n, r] out of the model's own [n, r_main]: its frequencies, evenly thinned out.

        So the branch turns by whatever RoPE and scaling the model has, and channels r and up know no position.
        """
        pairs, wanted = table.shape[-1] // 2, self.rotary_dim // 2
        if wanted > pairs:
            raise UnsupportedError(
                f"index_rotary_dim {self.rotary_dim} is over the model's {2 * pairs} rotated channels"
            )
        kept = table[:, torch.arange(wanted, device=table.device) * pairs // max(wanted, 1)]
        return torch.cat((kept, kept), -1)


class SparseAttention(nn.Module):
    """A model's own attention with an index branch beside it. Parameters keep their names; `indexer.*` are new."""

    def __init__(self, dense: Any, config: Any) -> None:
        super().__init__()
        for name, module in dense.named_children():
            setattr(self, name, module)
        self.indexer = IndexBranch(config)
        self.config = config
        self.layer_idx, self.head_dim, self.scaling = dense.layer_idx, dense.head_dim, dense.scaling
        self.num_key_value_groups, self.attention_dropout = dense.num_key_value_groups, dense.attention_dropout
        self.is_causal = True

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        *args: Any,
        trace: Trace | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """[B, T, C] -> [B, T, C]. With `trace` the step is one of training and what it measures goes there; without,
        further arguments are those of attention.forward."""
        branches = Branches(self, self.indexer, self.indexer.block_size)
        if trace is not None:
            return traced_forward(branches, hidden_states, position_embeddings, trace), None
        return forward(branches, hidden_states, position_embeddings, *args, **kwargs)
