"""What one step of training reads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, device

from longsight.ops.training import Documents

IGNORED = -100  # a target that carries no loss


@dataclass(frozen=True)
class TrainBatch:
    """Packed documents and what is to be predicted.

    tokens          int64 [T]
    targets         int64 [T]  the token that follows each row in its document, or IGNORED
    rope_positions  int64 [T]  what RoPE turns by; may skip ahead of the place in the document, on which blocks count
    """

    tokens: Tensor
    targets: Tensor
    rope_positions: Tensor
    documents: Documents

    def to(self, where: device) -> TrainBatch:
        """The same batch on a device; what says where documents begin stays on the CPU."""
        tokens, targets, positions = (x.to(where) for x in (self.tokens, self.targets, self.rope_positions))
        return TrainBatch(tokens, targets, positions, self.documents)
