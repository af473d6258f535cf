"""How a backend is chosen, for inference and training alike: by name or the fastest that can run, never in silence."""

from __future__ import annotations

import importlib
import logging
import os
from types import ModuleType

from longsight.ops.errors import BackendUnavailableError
from longsight.ops.memory import reuse_freed_memory

log = logging.getLogger("longsight")
NAMES = ("cpu", "reference")


def problem_of(name: str, kind: str) -> str | None:
    """None if the backend `name` can run here, else the reason why not. kind: what errors call it."""
    if name == "reference":
        return None
    if name == "cpu":
        from longsight.ops import kernels

        return kernels.unavailable_reason()
    return f"unknown {kind} {name!r}; known: {', '.join(NAMES)}"


def load(name: str | None, package: str, kind: str, pace: str) -> tuple[ModuleType, str]:
    """The module of `package` that runs, and why. pace: how the reference runs, for the warning of a fall to it.

    `name` (or the environment's LONGSIGHT_BACKEND) asks for one and raises BackendUnavailableError if it cannot run.
    Without a name the fastest that can run is taken; a fall to the reference is logged as a warning with its cause.
    """
    name = name or os.environ.get("LONGSIGHT_BACKEND")
    problem = problem_of(name or "cpu", kind)
    if name:
        if problem:
            raise BackendUnavailableError(f"{kind} {name!r} cannot run: {problem}")
        reason = "asked for by name"
    elif problem is None:
        from longsight.ops import kernels

        name, reason = "cpu", f"compiled CPU kernels, {kernels.isa()}"
        log.debug("%s cpu: %s", kind, reason)
    else:
        name = "reference"
        reason = f"CPU kernels are unavailable ({problem}); the plain PyTorch reference is exact but {pace}"
        log.warning("%s reference: %s", kind, reason)
    reuse_freed_memory()
    return importlib.import_module(f"{package}.{name}"), reason
