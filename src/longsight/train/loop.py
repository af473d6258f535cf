"""The training loop: stages of steps, with everything a later step depends on saved on the way.

A run is a pure function of its configuration: data depend on the step alone, and sums have a fixed order. One that was
killed and resumed goes on with the same losses to the bit, on the same machine with as many threads and processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longsight.model.errors import CheckpointError, ConfigError
from longsight.model.tokenizer import FILE as TOKENIZER
from longsight.ops.errors import LongsightError
from longsight.train import checkpoint, state
from longsight.train.attention import KlRows
from longsight.train.batch import TrainBatch
from longsight.train.config import Gate, StageConfig, TrainConfig
from longsight.train.data import Data, StageData, batches
from longsight.train.gate import GateWatch
from longsight.train.logs import Logs, Row
from longsight.train.optimizers import Optimizers
from longsight.train.parallel import Processes, accumulate, number, whole
from longsight.train.totals import Means, Totals, choosing_rows, count, kl_rows, kl_weights

WITH_KL = ("warmup", "sparse")  # attention modes in which the index branch learns


class TrainingError(LongsightError, RuntimeError):
    """A run that cannot go on: a loss that is no number, or a gate that stayed shut."""


@dataclass
class Place:
    """How far a run has come: steps done over all stages, the stage under way, steps and seconds done in it.

    late: the stage's minutes are over, by the main process's clock.
    """

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    seconds: float = 0.0
    late: bool = False


class Trainer:
    """One run of a configuration, in this process or as one of several. `run` does it all; `step` is one step.

    stop: set to True from anywhere (a signal handler): the run finishes its step, saves, and ends.
    """

    def __init__(self, config: TrainConfig, processes: Processes | None = None) -> None:
        self.config, self.processes = config, processes or Processes()
        _check_rows(config, self.processes.size)
        self.data = Data(config)
        self.network = state.begin(config, self.processes.device)
        if config.run.sharding == "fsdp":
            self.processes.shard(self.network)
        self.optimizers = Optimizers(self.network.parameter_groups(), config.optimizer)
        self._called: tuple[int, nn.Module] | None = None  # see `module`
        self.place = Place()
        self.gate = GateWatch(config.stages[0].gate)
        self.stop = False
        self._stopping = False  # what the processes agreed on

    @property
    def stage(self) -> StageConfig:
        """The stage under way."""
        return self.config.stages[self.place.stage]

    @property
    def checkpoints(self) -> Path:
        """The directory of the run's checkpoints."""
        return self.config.run.out / "checkpoints"

    @property
    def module(self) -> nn.Module:
        """The network as the stage under way calls it, with gradients that the processes agree on."""
        if self._called is None or self._called[0] != self.place.stage:
            self.network.topk = self.stage.topk_blocks
            if self.stage.static is not None:
                self.network.static = self.stage.static
            self._called = self.place.stage, self.processes.synced(self.network, unused=self._idle_index())
        return self._called[1]

    def run(self) -> bool:
        """Train from where the run stands to its end, and export. False: it was asked to stop, and has saved.

        Raises TrainingError; the newest checkpoint is then of an earlier step, or of the end of the failed stage.
        """
        with Logs(self.config.run, self.place.step, main=self.processes.main) as logs:
            while self.place.stage < len(self.config.stages):
                self._run_stage(logs)
                if self._stopping:
                    return False
            directory = self.export()
            served = (directory / TOKENIZER).exists()
            logs.say(f"the model is in {directory}{'' if served else ', without a tokenizer: [tokenizer] names none'}")
        return True

    def step(self) -> Row:
        """One optimiser step of the stage under way."""
        began = time.perf_counter()
        factor = self.stage.schedule.factor(self.place.stage_step, self.stage.steps)
        self.optimizers.configure(self.stage.optimizer, factor)
        self.optimizers.zero_grad()
        means = self._forward_backward(self._batches(self.data.stages[self.place.stage], self.place.stage_step))
        self._check("loss", means.loss if means.targets else 0.0, *means.kl)
        norms = [number(norm) for norm in self.optimizers.step()]
        self._check("gradient norm", *norms)
        if means.load is not None:
            self.network.balance(means.load, self.stage.optimizer.balance)
        self._advance(means, time.perf_counter() - began)
        return self._row(means, factor, norms, time.perf_counter() - began)

    def _forward_backward(self, batches: Sequence[TrainBatch]) -> Means:
        """Leave the gradients of loss / targets + lambda * KL, both over all processes."""
        targets, rows = count(batches, self.processes)
        totals = Totals(self.network.config.num_layers)
        for i, batch in enumerate(batches):
            accumulate(self.module, last=i == len(batches) - 1)
            output = self.module(batch, self.stage.attention, *self._kl(batch, rows, targets))
            objective = output.loss / max(targets, 1) + self.stage.kl * output.kl.sum()
            (objective * self.processes.size).backward()  # what arrives is the mean over processes
            totals.add(output, batch.documents.rows, self._choosing(batch))
        return totals.reduce(self.processes, (self.stop, self.processes.main and self._over()))

    def _kl(self, batch: TrainBatch, rows: int, targets: int) -> tuple[Tensor, KlRows | None]:
        """What each row has of the index branch's loss, and the rows that have a part of it over every key."""
        share = self.stage.kl_targets
        if self.stage.kl_keys == "chosen":
            return kl_weights(batch, rows, targets, share), None
        return (1 - share) * kl_weights(batch, rows, targets, 0.0), kl_rows(batch, targets, share)

    def _batches(self, rows: StageData, step: int) -> list[TrainBatch]:
        """This process's micro-batches of a step."""
        processes = self.processes
        mine = batches(rows, self.config.run.seed, step, processes.rank, processes.size)
        return [batch.to(processes.device) for batch in mine]

    def _advance(self, means: Means, seconds: float) -> None:
        self._stopping, self.place.late = means.flags
        self.place.step += 1
        self.place.stage_step += 1
        self.place.seconds += seconds
        self.gate.add(means.accuracy, means.captured)

    def _over(self) -> bool:
        return self.stage.minutes is not None and self.place.seconds >= 60 * self.stage.minutes

    @property
    def _ended(self) -> bool:
        """Whether the stage under way is at its end."""
        return self.place.stage_step >= self.stage.steps or self.place.late or self.gate.opened

    def _run_stage(self, logs: Logs) -> None:
        """To the stage's end, or to the step in which the run was asked to stop."""
        stage = self.stage
        logs.stage(stage.name, self.place.stage_step, stage.steps)
        while not self._ended and not self._stopping:
            row = self.step()
            self._validate(row)
            logs.step(row, stage.steps)
            if self._stopping or (self.place.step % self.config.run.save_every == 0 and not self._ended):
                self.save()
                logs.draw()
        if self._ended and not self._stopping:
            self._leave(logs)

    def _leave(self, logs: Logs) -> None:
        """Say how the stage ended, go to the next and save. Raises TrainingError if a required gate is shut."""
        stage, missing, step = self.stage, self.gate.missing(), self.place.stage_step
        if missing and stage.gate is not None and stage.gate.required:
            path = self.save()
            raise TrainingError(
                f"stage {stage.name!r} ended after {step} steps without what its gate asks for: {'; '.join(missing)}. "
                f"The run stops here; its state is in {path}"
            )
        if missing:
            logs.say(f"WARNING: stage {stage.name!r} ended with its gate shut: {'; '.join(missing)}")
        elif step < stage.steps:
            logs.say(f"stage {stage.name!r} ended early, after {step} of {stage.steps} steps: {self._why_early()}")
        self.place = Place(step=self.place.step, stage=self.place.stage + 1)
        self.gate = GateWatch(self._stage_gate())
        self.save()
        logs.draw()

    def _stage_gate(self) -> Gate | None:
        return self.stage.gate if self.place.stage < len(self.config.stages) else None

    def _why_early(self) -> str:
        return f"its {self.stage.minutes:g} minutes are over" if self.place.late else "its gate is open"

    @torch.no_grad()
    def _validate(self, row: Row) -> None:
        """Fill in the held-out loss, every so many steps and at the end of a stage."""
        config, rows = self.config.validation, self.data.validation
        if config is None or rows is None or not (self.place.step % config.every == 0 or self._ended):
            return
        totals = Totals(self.network.config.num_layers)
        for batch in self._batches(rows, 0):
            output = self.module(batch, self.stage.attention)
            totals.add(output, batch.documents.rows, self._choosing(batch))
        means = totals.reduce(self.processes)
        row.validation, row.validation_accuracy = means.loss, means.accuracy

    def save(self) -> Path:
        """Write a checkpoint of this moment; to be called by all processes at once."""
        path = checkpoint.file_of(self.checkpoints, self.place.step)
        saved = state.capture(self.network, self.optimizers)
        if self.processes.main:
            saved |= {"place": asdict(self.place), "gate": self.gate.history, "rng": checkpoint.rng_state()}
            saved |= {"stages": self._stage_names, "fingerprint": state.fingerprint(self.config)}
            checkpoint.save(path, saved, self.config.run.keep)
        self.processes.wait()
        return path

    def resume(self) -> str | None:
        """Go to where the newest checkpoint was taken; a warning, or None. Raises CheckpointError."""
        path = checkpoint.latest(self.checkpoints)
        if path is None:
            return f"there is no checkpoint in {self.checkpoints}; starting from the beginning"
        saved = checkpoint.load(path)
        state.check_format(saved, path)
        self.place = self._place(saved, path)
        state.restore(saved, self.network, self.optimizers)
        self.gate = GateWatch(self._stage_gate(), saved["gate"])
        checkpoint.set_rng_state(saved["rng"])
        if saved["fingerprint"] != state.fingerprint(self.config):
            return f"the configuration is not the one that {path} was made with: from here on the run is another"
        return None

    def _place(self, saved: Mapping[str, Any], path: Path) -> Place:
        place = Place(**saved["place"])
        ours, theirs = (names[: place.stage + 1] for names in (self._stage_names, saved["stages"]))
        if ours[: len(theirs)] != theirs:
            raise CheckpointError(f"{path} has been through the stages {theirs}; this configuration's are {ours}")
        return place

    @property
    def _stage_names(self) -> list[str]:
        return [stage.name for stage in self.config.stages]

    def export(self) -> Path:
        """Write the model as a checkpoint that `longsight serve` and `LLM` load; its directory."""
        directory = self.config.run.out / "model"
        weights = whole(self.network.state_dict())
        if self.processes.main:
            state.export(self.network, weights, self.config, self.data, directory)
        self.processes.wait()
        return directory

    def _check(self, what: str, *values: float) -> None:
        """Raise TrainingError unless all are finite; the processes agree on them."""
        if all(map(math.isfinite, values)):
            return
        path = checkpoint.latest(self.checkpoints)
        last = f"the last good checkpoint is {path}" if path else "there is no checkpoint yet"
        raise TrainingError(
            f"step {self.place.step + 1} (stage {self.stage.name!r}, step {self.place.stage_step + 1}): {what} is "
            f"{', '.join(map(str, values))}; {last}. A smaller learning rate or clip may help"
        )

    def _idle_index(self) -> bool:
        """Whether a layer's index branch gets no gradient in the stage under way."""
        kinds = self.network.config.attention_kinds
        return any(k == "sparse" and mode not in WITH_KL for k, mode in zip(kinds, self.stage.attention, strict=True))

    def _choosing(self, batch: TrainBatch) -> int:
        config = self.network.config
        return choosing_rows(batch, self.stage.topk_blocks, config.block_size)

    def _row(self, means: Means, factor: float, norms: Sequence[float], seconds: float) -> Row:
        groups = self.stage.optimizer.groups
        return Row(
            step=self.place.step,
            stage=self.stage.name,
            stage_step=self.place.stage_step,
            loss=means.loss,
            accuracy=means.accuracy,
            kl=[kl if mode in WITH_KL else math.nan for kl, mode in zip(means.kl, self.stage.attention, strict=True)],
            captured=means.captured,
            rates={name: groups[name].lr * factor for name in self.network.parameter_groups()},
            norms=dict(zip(("backbone", "index"), norms, strict=True)),
            tokens_per_second=means.rows / seconds,
        )


def _check_rows(config: TrainConfig, processes: int) -> None:
    """Raise ConfigError now, rather than hours later, where a process would be left without a row."""
    counts = [(f"batch of stage {stage.name!r}", stage.batch) for stage in config.stages]
    counts += [("rows of validation", config.validation.rows)] if config.validation else []
    for what, rows in counts:
        if rows < processes:
            raise ConfigError(f"the {what} is {rows}; {processes} processes need at least {processes}")
