"""Whether a stage has reached what it was for: means over its last steps against a gate."""

from __future__ import annotations

from collections.abc import Sequence

from longsight.train.config import Gate


class GateWatch:
    """Running means of the accuracy and of each layer's captured mass, over the gate's window of steps."""

    def __init__(self, gate: Gate | None, history: Sequence[Sequence[float]] = ()) -> None:
        """gate: None asks for nothing. history: what `history` held when a run was saved."""
        self.gate = gate
        self.history = [list(values) for values in history]  # per step: accuracy, then the captured mass of each layer

    def add(self, accuracy: float, captured: Sequence[float]) -> None:
        if self.gate is not None:
            self.history = [*self.history, [accuracy, *captured]][-self.gate.window :]

    @property
    def means(self) -> list[float]:
        """Accuracy, then captured mass by layer; nan for a layer that does not measure it."""
        return [sum(column) / len(column) for column in zip(*self.history, strict=True)]

    @property
    def opened(self) -> bool:
        """Whether the stage may end before its steps are done."""
        return self.gate is not None and self.gate.early and not self.missing()

    def missing(self) -> list[str]:
        """What is not reached, in words; empty when the gate is open."""
        if self.gate is None:
            return []
        if len(self.history) < self.gate.window:
            return [f"{len(self.history)} steps of the {self.gate.window} that its means are over"]
        accuracy, *captured = self.means
        found = []
        if self.gate.accuracy is not None and not accuracy >= self.gate.accuracy:
            found.append(f"accuracy {accuracy:.3f} where {self.gate.accuracy:g} is asked for")
        wanted = self.gate.captured
        if wanted is not None:
            found += [
                f"captured mass {mass:.3f} in layer {layer} where {wanted:g} is asked for"
                for layer, mass in enumerate(captured)
                if mass < wanted
            ]
        return found
