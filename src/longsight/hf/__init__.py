"""Sparse attention inside the transformers library.

Importing this package makes attn_implementation="longsight" known: stock MiniMax-M3 models then choose and read blocks
by our operators, over a cache of pages, and no mask of queries times keys exists. docs/transformers.md shows it.
"""

from longsight.hf.cache import PagedCache
from longsight.hf.minimax_m3 import register

__all__ = ["PagedCache"]

register()
