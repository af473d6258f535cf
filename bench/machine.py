"""Facts about the machine and this process: what a reader needs in order to judge a figure."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine_facts() -> dict[str, Any]:
    """What a reader needs in order to judge the figures."""
    from longsight.ops import kernels

    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    problem = kernels.unavailable_reason()
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": kernels.isa() if problem is None else f"none ({problem})",
        "memory_gib": round(pages / 2**30, 1),
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def loadavg() -> str:
    path = Path("/proc/loadavg")
    return path.read_text().strip() if path.exists() else "unknown"


def busy_share(seconds: float = 0.5) -> float:
    """The share of all cores that other programs use during a pause of ours, 0 to 1."""
    all_before, idle_before = _cpu_ticks()
    own_before = time.process_time()
    time.sleep(seconds)
    all_after, idle_after = _cpu_ticks()
    # Worker threads of ours may still spin in wait of more work; that is no one else's load.
    own = (time.process_time() - own_before) * os.sysconf("SC_CLK_TCK")
    total = all_after - all_before
    return max(total - (idle_after - idle_before) - own, 0.0) / total if total else 0.0


def _cpu_ticks() -> tuple[int, int]:
    """(all, idle) clock ticks since boot, over all cores."""
    ticks = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(ticks), ticks[3] + ticks[4]


def commit() -> str:
    """The commit that was measured, with -dirty if sources differ from it; unknown outside a git checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def peak_rss() -> int:
    """The most physical memory this process has held since `reset_peak_rss`, in bytes."""
    return _status("VmHWM")


def current_rss() -> int:
    return _status("VmRSS")


def reset_peak_rss() -> None:
    """Start a new peak. Linux only: writes 5 to clear_refs."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")
