"""Weights in the order the kernels read them (see ops/layout.py). Packed once, when a checkpoint is loaded."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from longsight.ops.errors import UnsupportedError
from longsight.ops.layout import pack


@dataclass(frozen=True)
class PackedLinear:
    """A weight [out_features, in_features], rows padded with zeros to a multiple of 16 and packed."""

    data: Tensor
    out_features: int
    in_features: int

    @property
    def padded_out(self) -> int:
        return -(-self.out_features // 16) * 16

    @classmethod
    def from_dense(cls, *parts: Tensor) -> PackedLinear:
        """Pack the row-wise concatenation of `parts`, each [N_i, K] of one dtype."""
        dense = torch.cat(parts) if len(parts) > 1 else parts[0]
        rows, columns = dense.shape
        if columns % 16:
            raise UnsupportedError(f"a linear layer's input size must be a multiple of 16, got {columns}")
        padding = -rows % 16
        if padding:
            dense = torch.cat((dense, dense.new_zeros(padding, columns)))
        return cls(pack(dense), rows, columns)


@dataclass(frozen=True)
class PackedExperts:
    """The routed experts of one layer: gate_up[e] is [2I, K] = [gate | up], down[e] is [K, I]."""

    gate_up: tuple[PackedLinear, ...]
    down: tuple[PackedLinear, ...]

    @cached_property
    def addresses(self) -> tuple[ctypes.Array[ctypes.c_void_p], ctypes.Array[ctypes.c_void_p]]:
        """Where each expert's packed weights lie: one array for gate_up, one for down."""
        array = ctypes.c_void_p * len(self.down)
        return (
            array(*(w.data.data_ptr() for w in self.gate_up)),
            array(*(w.data.data_ptr() for w in self.down)),
        )
