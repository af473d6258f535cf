"""Requests to the operating system and to torch's libraries that large tensors profit from. Best effort: where nobody
listens they do nothing."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from ctypes import c_int, c_size_t, c_void_p
from functools import cache

from torch import Tensor

PAGE, HUGE_PAGE = mmap.PAGESIZE, 2 << 20
MADV_HUGEPAGE = 14  # <sys/mman.h>
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


def advise_huge_pages(tensor: Tensor) -> None:
    """Ask for 2 MiB pages under a large tensor: fewer address look-ups in a scan of index keys. Touches no memory."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    start = -(-tensor.data_ptr() // PAGE) * PAGE
    length = tensor.data_ptr() + tensor.nbytes - start
    if length >= HUGE_PAGE and hasattr(libc, "madvise"):
        libc.madvise(c_void_p(start), c_size_t(length // PAGE * PAGE), c_int(MADV_HUGEPAGE))


@cache
def reuse_freed_memory(largest: int = 256 << 20) -> None:
    """Let the C allocator keep freed blocks of up to `largest` bytes instead of returning them to the system at once.

    A step's activations are tens of megabytes; without this glibc maps and zeroes them anew in every layer, which takes
    nearly as long as the matrix product that fills them (bench: linear, 2048 x 512 x 9344, 524 against 946 GFLOP/s).
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(c_int(M_MMAP_THRESHOLD), c_int(largest))
        libc.mallopt(c_int(M_TRIM_THRESHOLD), c_int(largest))


def bound_shape_caches(entries: int = 64) -> None:
    """Let torch's bf16 matrix products on the CPU remember `entries` shapes instead of 1,024.

    oneDNN, and ideep above it, keep a prepared product for every number of rows; lying between the large blocks that
    training frees and takes again, they keep the heap from closing its gaps. Batches of ever new lengths took 75 MB
    more in each step of 8,192 tokens; bounded, the growth nearly ends at 2.7 GB. Preparing one anew takes 0.7 ms. Both
    libraries read these variables at their first product; what the user has set stays.
    """
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(variable, str(entries))
