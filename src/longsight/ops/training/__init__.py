"""Operators with gradients over packed documents: what training runs on."""

from longsight.ops.training.documents import Documents

__all__ = ["Documents"]
