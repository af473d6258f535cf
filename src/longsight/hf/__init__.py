"""Sparse attention inside the transformers library.

Importing this package makes attn_implementation="longsight" known: stock MiniMax-M3 models then choose and read blocks
by our operators, over a cache of pages, and no mask of queries times keys exists. `load` opens what `longsight convert`
made of other models. docs/transformers.md shows both.
"""

from longsight.hf.cache import PagedCache
from longsight.hf.converted import ConversionError, load
from longsight.hf.minimax_m3 import register

__all__ = ["ConversionError", "PagedCache", "load"]

register()
