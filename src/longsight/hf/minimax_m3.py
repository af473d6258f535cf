"""Registers attn_implementation="longsight" with transformers, for its stock MiniMax-M3 models.

transformers' own indexer scores every pair of tokens inside the attention module, before any registered attention
function is called. So the module's forward is wrapped: a model that asks for "longsight" never calls the indexer's
forward, any other model runs the stock code.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.minimax_m3_vl import modeling_minimax_m3_vl as m3

from longsight.hf.attention import NAME, Branches, forward
from longsight.hf.rows import mask_function
from longsight.ops import UnsupportedError

_stock = m3.MiniMaxM3VLAttention.forward


def register() -> None:
    """Make the name known and wrap M3's attention; a second call changes nothing."""
    AttentionInterface.register(NAME, attention_function)
    AttentionMaskInterface.register(NAME, mask_function)
    m3.MiniMaxM3VLAttention.forward = with_longsight


@wraps(_stock)
def with_longsight(self: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """M3's attention: the stock code, called as it would have been, unless the model asks for "longsight"."""
    if self.config._attn_implementation != NAME:
        out: tuple[Tensor, Tensor | None] = _stock(self, *args, **kwargs)
        return out
    branches = Branches(self, self.indexer, self.config.index_block_size)
    check_heads(self, self.config)
    return forward(branches, *args, **kwargs)


def check_heads(module: Any, config: Any) -> None:
    """Raise UnsupportedError unless there is one index head per group of query heads."""
    if module.indexer is not None and module.indexer.num_heads != config.num_key_value_heads:
        raise UnsupportedError(
            f"index_n_heads {module.indexer.num_heads} must equal num_key_value_heads {config.num_key_value_heads}"
        )


def attention_function(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """Called by modules that know nothing of us. A vision tower's attention is dense by definition and stays so.

    Everything else has no index branch and is refused: a causal model would run dense without saying so.
    """
    if isinstance(module, m3.MiniMaxM3VLVisionAttention):
        out: tuple[Tensor, None] = sdpa_attention_forward(module, *args, **kwargs)
        return out
    raise UnsupportedError(
        f'attn_implementation="{NAME}" runs models with an index branch: MiniMax-M3, or one that `longsight convert` '
        f"made; {type(module).__name__} has none"
    )
