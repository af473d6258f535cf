"""A directory with config.json and safetensors -> a model that runs."""

from __future__ import annotations

from pathlib import Path

import torch

from longsight.model.checkpoint import Checkpoint
from longsight.model.config import ModelConfig
from longsight.model.decoder import Model
from longsight.model.errors import CheckpointError
from longsight.model.weights import Progress, load_weights
from longsight.ops import UnsupportedError, choose
from longsight.ops.layout import DTYPES


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load a MiniMax-M3 checkpoint directory.

    dtype: torch.bfloat16 or torch.float32; None takes the config's. backend: see `longsight.ops.choose`.
    progress(bytes_read, bytes_total) is called as tensors are read.
    Raises ConfigError, CheckpointError, UnsupportedError (dtype) or BackendUnavailableError.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a directory; expected one with config.json and safetensors files")
    config = ModelConfig.from_file(path)
    dtype = dtype or config.dtype
    if dtype not in DTYPES:
        raise UnsupportedError(f"the model cannot run in {dtype}; ask for dtype torch.bfloat16 or torch.float32")
    chosen, reason = choose(backend)
    return Model(config, load_weights(Checkpoint(path), config, dtype, progress), dtype, chosen, reason)
