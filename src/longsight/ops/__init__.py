"""Operators of MiniMax Sparse Attention over paged memory: one signature, several backends."""

from longsight.ops.backends import Backend, choose, supports
from longsight.ops.batch import Batch
from longsight.ops.errors import BackendUnavailableError, LongsightError, UnsupportedError
from longsight.ops.layout import LayerPages, PageLayout
from longsight.ops.plain import dense_attention, select_blocks, sparse_attention
from longsight.ops.weights import PackedExperts, PackedLinear

__all__ = [
    "Backend",
    "BackendUnavailableError",
    "Batch",
    "LayerPages",
    "LongsightError",
    "PackedExperts",
    "PackedLinear",
    "PageLayout",
    "UnsupportedError",
    "choose",
    "dense_attention",
    "select_blocks",
    "sparse_attention",
    "supports",
]
