"""The network: configuration, weights and the forward pass of MiniMax-M3's text model."""

from longsight.model.config import ModelConfig
from longsight.model.decoder import Model
from longsight.model.errors import CheckpointError, ConfigError
from longsight.model.load import load_model

__all__ = ["CheckpointError", "ConfigError", "Model", "ModelConfig", "load_model"]
