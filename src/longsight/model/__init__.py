"""The network: configuration, weights and the forward pass of MiniMax-M3's text model."""

from longsight.model.config import ModelConfig
from longsight.model.errors import CheckpointError, ConfigError

__all__ = ["CheckpointError", "ConfigError", "ModelConfig"]
