"""How many pages there are: exact accounting of bytes, and what the machine has to give."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from pathlib import Path

from longsight.engine.errors import EngineConfigError

# What a step needs besides weights and pages, whatever the context: the promise that tests and benches check.
WORKSPACE_BYTES = 512 * 2**20


def plan_pages(
    *,
    page_bytes: int,
    block_size: int,
    context_limit: int,
    max_model_len: int | None,
    kv_bytes: int | None,
    available: int,
    on_disk: bool = False,
) -> tuple[int, int]:
    """(pages, max_model_len) from what was asked for and what there is.

    kv_bytes buys kv_bytes // page_bytes pages; None takes what one request of max_model_len tokens needs, within
    `available` bytes less the workspace. max_model_len None means the model's limit, or what the pages hold if that is
    less. on_disk: the bytes available are those of kv_dir's disk. A demand that can't be met raises EngineConfigError
    with the numbers and the arguments to change, which the command line has as options.
    """
    if max_model_len is not None and not 2 <= max_model_len <= context_limit:
        raise EngineConfigError(f"max_model_len is {max_model_len}; this model accepts 2 to {context_limit}")
    wanted = -(-(max_model_len or context_limit) // block_size)
    if kv_bytes is not None:
        pages = kv_bytes // page_bytes
        source = f"the {kv_bytes} bytes given for the cache"
    else:
        room = max(available - WORKSPACE_BYTES, 0)
        pages = min(wanted, room // page_bytes)
        if on_disk:
            source = f"{room} bytes of free space on the disk of kv_dir (--kv-dir)"
        else:
            source = f"{available} bytes of free memory, less {WORKSPACE_BYTES} for the work itself,"
    if pages < 1 or (max_model_len is not None and pages < wanted):
        needed = wanted if max_model_len is not None else 1
        raise EngineConfigError(
            f"{source} hold {pages} pages of {page_bytes} bytes; "
            f"{needed} are needed ({needed * page_bytes} bytes, {needed * block_size} tokens); "
            f"{_remedy(max_model_len, kv_bytes, on_disk)}"
        )
    return pages, max_model_len or min(context_limit, pages * block_size)


def _remedy(max_model_len: int | None, kv_bytes: int | None, on_disk: bool) -> str:
    lower = " or lower max_model_len (--max-model-len)" if max_model_len is not None else ""
    if kv_bytes is not None:
        return f"raise kv_bytes (--kv-memory){lower}"
    return (
        f"free some space, take another disk{lower}" if on_disk else f"free some memory, use kv_dir (--kv-dir){lower}"
    )


def no_memory(pages: int, page_bytes: int) -> EngineConfigError:
    """The error where the system refuses the memory of so many pages."""
    asked, free = pages * page_bytes, available_bytes()
    return EngineConfigError(
        f"no memory for {pages} pages of the cache: can't allocate {asked} bytes ({asked / 2**30:,.1f} GiB), of "
        f"{free} ({free / 2**30:,.1f} GiB) that are free; lower kv_bytes (--kv-memory) or max_model_len "
        "(--max-model-len), or use kv_dir (--kv-dir)"
    )


def available_bytes() -> int:
    """Bytes this process may still take: free memory of the machine or of its control group, whichever is less."""
    candidates = [_machine_free()]
    for directory, limit, used in (
        (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            free = int((directory / limit).read_text()) - int((directory / used).read_text())
            candidates.append(free + _idle_file_cache(directory / "memory.stat"))
        except (OSError, ValueError):
            continue  # not Linux, no such controller, or "max"
    return max(min(candidates), 0)


def disk_bytes(directory: Path) -> int:
    """Bytes that a file in `directory` may take: what is free, and what an earlier pool there occupies already."""
    existing = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    taken = sum(file.stat().st_size for file in directory.glob("pages.bin"))  # all of it reserved (kv_dir.py)
    return shutil.disk_usage(existing).free + taken + WORKSPACE_BYTES  # which plan_pages takes off again


def _idle_file_cache(stat: Path) -> int:
    """Bytes that a control group counts as used but gives back on demand, a mapped checkpoint's for the most part."""
    fields = dict(line.split() for line in stat.read_text().splitlines())
    return int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))


class _MemoryStatus(ctypes.Structure):
    """Windows' MEMORYSTATUSEX."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("free", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 5),
    )


def _machine_free() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
        if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
            raise ctypes.WinError()
        return int(status.free)
    # No such file outside Linux: half of all memory is a fair guess at what is free.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
