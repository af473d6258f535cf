"""Which operators run for tensors of a device: chosen once, so that a reason is logged once and not in every layer."""

from __future__ import annotations

import os
from functools import cache

import torch

from longsight.ops import Backend, choose, training


def backend_for(device: torch.device) -> Backend:
    """Operators over pages: the chosen CPU backend, the plain PyTorch reference on any other device."""
    return _backend(_asked(device))


def training_for(device: torch.device) -> training.TrainingBackend:
    """Operators with gradients, by the same rule."""
    return _training(_asked(device))


def _asked(device: torch.device) -> str | None:
    return os.environ.get("LONGSIGHT_BACKEND") if device.type == "cpu" else "reference"


@cache
def _backend(name: str | None) -> Backend:
    return choose(name)[0]


@cache
def _training(name: str | None) -> training.TrainingBackend:
    return training.choose(name)[0]
