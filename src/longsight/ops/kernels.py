"""Loads the compiled kernels and describes their C interface (csrc/args.h) to ctypes."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import platform
from contextvars import ContextVar
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from longsight.ops.errors import BackendUnavailableError, UnsupportedError
from longsight.ops.memory import advise_huge_pages

LIBRARY = "liblongsight_kernels.so"
OUT_OF_MEMORY, BAD_SELECTION, BAD_EXPERT = 1, 2, 3  # csrc/args.h
ABI = 5  # ls_abi() of the library this file describes


class BatchArgs(Structure):
    _fields_ = (
        ("cu_seqlens", c_void_p),
        ("kv_lens", c_void_p),
        ("block_table", c_void_p),
        ("sequences", c_int64),
        ("max_blocks", c_int64),
    )


class SelectArgs(Structure):
    _fields_ = (
        ("index_q", c_void_p),
        ("index_k", c_void_p),
        ("codes", c_void_p),
        ("pauses", c_void_p),
        ("ids", c_void_p),
        ("batch", BatchArgs),
        ("groups", c_int64),
        ("dim", c_int64),
        ("block", c_int64),
        ("topk", c_int64),
        ("local_blocks", c_int64),
        ("init_blocks", c_int64),
        ("screen_rows_from", c_int64),
        ("screen_from", c_int64),
        ("is_bf16", c_int32),
        ("threads", c_int32),
    )


class AttentionArgs(Structure):
    _fields_ = (
        ("q", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("ids", c_void_p),
        ("out", c_void_p),
        ("lse", c_void_p),
        ("batch", BatchArgs),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("dim", c_int64),
        ("block", c_int64),
        ("topk", c_int64),
        ("scale", c_float),
        ("is_bf16", c_int32),
        ("threads", c_int32),
    )


class AppendArgs(Structure):
    _fields_ = (
        ("k", c_void_p),
        ("v", c_void_p),
        ("index_k", c_void_p),
        ("k_pages", c_void_p),
        ("v_pages", c_void_p),
        ("index_pages", c_void_p),
        ("index_codes", c_void_p),
        ("batch", BatchArgs),
        ("kv_heads", c_int64),
        ("dim", c_int64),
        ("index_dim", c_int64),
        ("block", c_int64),
        ("k_stride", c_int64),
        ("v_stride", c_int64),
        ("index_stride", c_int64),
        ("is_bf16", c_int32),
        ("threads", c_int32),
    )


class LinearArgs(Structure):
    _fields_ = (
        ("x", c_void_p),
        ("weight", c_void_p),
        ("y", c_void_p),
        ("rows", c_int64),
        ("in_features", c_int64),
        ("out_features", c_int64),
        ("padded_out", c_int64),
        ("x_stride", c_int64),
        ("is_bf16", c_int32),
        ("threads", c_int32),
    )


class MoeArgs(Structure):
    _fields_ = (
        ("x", c_void_p),
        ("expert_ids", c_void_p),
        ("expert_weights", c_void_p),
        ("gate_up", c_void_p),
        ("down", c_void_p),
        ("y", c_void_p),
        ("rows", c_int64),
        ("hidden", c_int64),
        ("width", c_int64),
        ("experts", c_int64),
        ("topk", c_int64),
        ("alpha", c_float),
        ("limit", c_float),
        ("is_bf16", c_int32),
        ("threads", c_int32),
    )


class NormArgs(Structure):
    _fields_ = (
        ("x", c_void_p),
        ("weight", c_void_p),
        ("y", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("rows", c_int64),
        ("heads", c_int64),
        ("dim", c_int64),
        ("half", c_int64),
        ("x_stride", c_int64),
        ("eps", c_float),
        ("is_bf16", c_int32),
        ("threads", c_int32),
    )


class SwigluArgs(Structure):
    _fields_ = (
        ("gate_up", c_void_p),
        ("y", c_void_p),
        ("rows", c_int64),
        ("width", c_int64),
        ("alpha", c_float),
        ("limit", c_float),
        ("is_bf16", c_int32),
        ("threads", c_int32),
    )


class AddArgs(Structure):
    _fields_ = (
        ("y", c_void_p),
        ("x", c_void_p),
        ("count", c_int64),
        ("y_is_bf16", c_int32),
        ("x_is_bf16", c_int32),
        ("accumulate", c_int32),
        ("threads", c_int32),
    )


class RouteArgs(Structure):
    _fields_ = (
        ("logits", c_void_p),
        ("bias", c_void_p),
        ("ids", c_void_p),
        ("weights", c_void_p),
        ("rows", c_int64),
        ("experts", c_int64),
        ("topk", c_int64),
        ("scale", c_float),
        ("threads", c_int32),
    )


class LikeliestArgs(Structure):
    _fields_ = (
        ("logits", c_void_p),
        ("ids", c_void_p),
        ("best", c_void_p),
        ("rows", c_int64),
        ("vocab", c_int64),
        ("is_bf16", c_int32),
        ("threads", c_int32),
    )


class DocumentsArgs(Structure):
    _fields_ = (("cu_seqlens", c_void_p), ("count", c_int64))


class AttentionGradArgs(Structure):
    _fields_ = (
        ("q", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("out", c_void_p),
        ("dout", c_void_p),
        ("lse", c_void_p),
        ("ids", c_void_p),
        ("dq", c_void_p),
        ("dk", c_void_p),
        ("dv", c_void_p),
        ("documents", DocumentsArgs),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("dim", c_int64),
        ("block", c_int64),
        ("topk", c_int64),
        ("scale", c_float),
        ("is_bf16", c_int32),
        ("threads", c_int32),
    )


class IndexKlArgs(Structure):
    _fields_ = (
        ("index_q", c_void_p),
        ("index_k", c_void_p),
        ("q", c_void_p),
        ("k", c_void_p),
        ("lse", c_void_p),
        ("ids", c_void_p),
        ("weight", c_void_p),
        ("loss", c_void_p),
        ("dindex_q", c_void_p),
        ("dindex_k", c_void_p),
        ("documents", DocumentsArgs),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("dim", c_int64),
        ("index_dim", c_int64),
        ("block", c_int64),
        ("topk", c_int64),
        ("scale", c_float),
        ("index_scale", c_float),
        ("is_bf16", c_int32),
        ("threads", c_int32),
    )


class Call(Structure):
    """A kernel's place in CALLS and its arguments."""

    _fields_ = (("kernel", c_int64), ("args", c_void_p))


# In the order of enum ls_kernel.
CALLS: dict[str, type[Structure]] = {
    "ls_select_blocks": SelectArgs,
    "ls_attention": AttentionArgs,
    "ls_append_kv": AppendArgs,
    "ls_linear": LinearArgs,
    "ls_moe": MoeArgs,
    "ls_norm": NormArgs,
    "ls_swiglu": SwigluArgs,
    "ls_add": AddArgs,
    "ls_route": RouteArgs,
    "ls_likeliest": LikeliestArgs,
}
# Kernels of training, which are never part of a recorded step.
TRAINING_CALLS: dict[str, type[Structure]] = {"ls_attention_grad": AttentionGradArgs, "ls_index_kl": IndexKlArgs}


def library_path() -> Path:
    """LONGSIGHT_KERNELS if set, else the library that was built with the package."""
    override = os.environ.get("LONGSIGHT_KERNELS")
    if override:
        return Path(override)
    import longsight.ops

    # An editable install keeps sources and built files apart; both folders are on the package's path.
    candidates = [Path(folder) / LIBRARY for folder in longsight.ops.__path__]
    return next((path for path in candidates if path.exists()), candidates[0])


@cache
def _load() -> ctypes.CDLL | str:
    """The library, or the reason why there is none."""
    path = library_path()
    if not path.exists():
        return (
            f"{path} does not exist: the C++ compile failed or was skipped; "
            "reinstall with LONGSIGHT_REQUIRE_KERNELS=1 to see why"
        )
    try:
        _share_openmp()
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return f"{path} cannot be loaded: {error}"
    if library.ls_abi() != ABI:
        return f"{path} has interface version {library.ls_abi()}, this package needs {ABI}: rebuild it"
    for name, struct in (CALLS | TRAINING_CALLS).items():
        function = getattr(library, name)
        function.argtypes, function.restype = (POINTER(struct),), c_int
    library.ls_run.argtypes, library.ls_run.restype = (POINTER(Call), c_int64, POINTER(c_int64)), c_int
    library.ls_isa.restype = library.ls_usable_isa.restype = c_char_p
    library.ls_usable_isa.argtypes, library.ls_use_isa.argtypes = (c_int,), (c_char_p,)
    library.ls_peak_flops.argtypes, library.ls_peak_flops.restype = (c_int, c_int, c_double), c_double
    library.ls_stream_read.argtypes, library.ls_stream_read.restype = (c_void_p, c_size_t, c_int), c_double
    asked = os.environ.get("LONGSIGHT_CPU_ISA")
    if asked and library.ls_use_isa(asked.encode()):
        return (
            f"LONGSIGHT_CPU_ISA={asked} is unknown or cannot run on this {platform.machine()} processor; "
            f"it can run: {', '.join(_usable(library))}"
        )
    return library


def _share_openmp() -> None:
    """Make the OpenMP runtime that torch loaded visible to the kernels, so that both use one pool of threads."""
    loaded = Path("/proc/self/maps")
    if loaded.exists():
        paths = {line.split()[-1] for line in loaded.read_text().splitlines() if "omp" in line}
    else:  # macOS tells no such list; torch brings its runtime there
        paths = {str(path) for path in (Path(torch.__file__).parent / "lib").glob("lib*omp*.dylib")}
    runtimes = sorted(path for path in paths if Path(path).name.startswith(("libgomp", "libiomp", "libomp")))
    runtime = runtimes[0] if runtimes else ctypes.util.find_library("gomp") or ctypes.util.find_library("omp")
    if runtime is None:
        raise OSError("no OpenMP runtime (libgomp or libomp) found; install it or a torch that brings one")
    ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)


def _usable(library: ctypes.CDLL) -> list[str]:
    names: list[str] = []
    while (name := library.ls_usable_isa(len(names))) is not None:
        names.append(name.decode())
    return names


def library() -> ctypes.CDLL:
    """The loaded library. Raises BackendUnavailableError with the reason if there is none."""
    loaded = _load()
    if isinstance(loaded, str):
        raise BackendUnavailableError(loaded)
    return loaded


def unavailable_reason() -> str | None:
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def isa() -> str:
    """The instruction set in use, one of `usable_isas()`: avx2 or neon, for example."""
    return str(library().ls_isa().decode())


def screens() -> bool:
    """Whether the instruction set in use can rule out blocks by 8-bit copies of their index keys."""
    return bool(library().ls_screens())


def usable_isas() -> list[str]:
    """The instruction sets this machine can run, best first."""
    return _usable(library())


def use_isa(name: str) -> None:
    """Switch the instruction set of this process (the environment's LONGSIGHT_CPU_ISA does it at start)."""
    if library().ls_use_isa(name.encode()):
        raise UnsupportedError(f"instruction set {name!r} cannot run here; usable: {', '.join(usable_isas())}")


# What `call` appends to while a step is recorded (ops/tape.py).
recording: ContextVar[list[tuple[str, Structure, tuple[Tensor, ...]]] | None] = ContextVar("recording", default=None)


def call(name: str, args: Structure, *outputs: Tensor) -> None:
    """Run a kernel that writes `outputs`; the GIL is released meanwhile. Raises what `check` raises."""
    check(name, args, getattr(library(), name)(args))
    recorded = recording.get()
    if recorded is not None:
        recorded.append((name, args, outputs))


def check(name: str, args: Structure, status: int) -> None:
    """Raise MemoryError when a kernel's workspace cannot be had, UnsupportedError for ids that break the contract."""
    if status == OUT_OF_MEMORY:
        raise MemoryError(f"{name}: out of memory for the kernel's workspace")
    if status == BAD_SELECTION:
        raise UnsupportedError("block ids must ascend, end in -1 padding and never pass the row's own block")
    if status == BAD_EXPERT:
        raise UnsupportedError(f"expert ids must lie in 0..{args.experts - 1}")


def peak_bf16_flops(threads: int | None = None, seconds: float = 0.2) -> float:
    """Measured FLOP/s of the bf16 dot-product instruction (of fp32 FMA where there is none), registers only."""
    return float(library().ls_peak_flops(1, threads or torch.get_num_threads(), seconds))


def stream_read_bandwidth(size: int = 1 << 30, threads: int | None = None, repeats: int = 5) -> float:
    """Measured bytes per second of a plain sequential read of `size` bytes, best of `repeats`."""
    memory = torch.empty(size, dtype=torch.uint8)
    advise_huge_pages(memory)
    memory.fill_(1)
    seconds = [
        library().ls_stream_read(memory.data_ptr(), size, threads or torch.get_num_threads()) for _ in range(repeats)
    ]
    return float(size / min(seconds))
