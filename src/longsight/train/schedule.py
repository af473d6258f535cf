"""The learning rate of a step, as a factor of the stage's rate: pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["constant", "linear", "cosine", "wsd"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True)
class Schedule:
    """A rise over `warmup` steps to 1, then

    constant  1
    linear    a straight fall to `final` over the rest of the stage
    cosine    half a cosine from 1 to `final` over the rest of the stage
    wsd       1, and a straight fall to `final` over the last `cooldown` of all steps (warm-up, stable, decay)

    final: factor at the last step. cooldown: a share from 0 to 1, read by wsd only.
    """

    kind: Kind = "constant"
    warmup: int = 0
    final: float = 0.1
    cooldown: float = 0.2

    def factor(self, step: int, steps: int) -> float:
        """Factor of step 0 .. steps - 1. The warm-up's first step is 1 / (warmup + 1), so no step is wasted on 0."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.kind == "constant":
            return 1.0
        begin, last = self.warmup, steps - 1
        if self.kind == "wsd":
            begin = max(begin, steps - math.ceil(self.cooldown * steps) - 1)
        if step <= begin:
            return 1.0
        share = min((step - begin) / (last - begin), 1.0) if last > begin else 1.0
        if self.kind == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return 1 + (self.final - 1) * share
