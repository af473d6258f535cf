"""Operators with gradients over packed documents: what training runs on."""

from longsight.ops.training.backends import TrainingBackend, choose, supports
from longsight.ops.training.documents import Documents
from longsight.ops.training.static import StaticPolicy, static_blocks

__all__ = ["Documents", "StaticPolicy", "TrainingBackend", "choose", "static_blocks", "supports"]
