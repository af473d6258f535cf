"""What a study consists of: its TOML file as frozen values, and the runs that follow from it."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent
from typing import Any

from longsight.evals import EvalSettings, Variant
from longsight.ops.errors import LongsightError
from longsight.train.config import TrainConfig
from longsight.train.tokens import HEADER

SWEEP_KEYS = ("tasks", "lengths", "loss_length")
FAILED = "failed.txt"  # in a run's directory: why it failed


class StudyError(LongsightError, ValueError):
    """A study file that cannot be run, with the key and what is accepted."""


@dataclass(frozen=True)
class Arm:
    """One way to train. attention: mode per stage. assignments: `key=value` over the training file. evaluate: how the
    trained weights attend when they are evaluated; the first is the arm's own. sweep: shown beside the sweeps."""

    name: str
    attention: tuple[str, ...]
    evaluate: tuple[Variant, ...]
    assignments: tuple[str, ...] = ()
    sweep: bool = False


@dataclass(frozen=True)
class Run:
    """An arm with a seed. directory: its name under the study's output."""

    arm: Arm
    seed: int
    assignments: tuple[str, ...]

    @property
    def directory(self) -> str:
        return f"{re.sub('[^a-z0-9]+', '-', self.arm.name.lower())}-{self.seed}"


def finished(directory: Path) -> bool:
    """Whether a run exported its model; config.json is the last file of that."""
    return (directory / "model" / "config.json").exists()


@dataclass(frozen=True)
class Study:
    """train: the training file. evaluation: EvalSettings without its variants; sweep: what differs in it where arms of
    the sweep, or other variants than an arm's own, are evaluated. text, loss_text: files that evaluation reads;
    held_out: instead, the [[data]] of the training file whose documents it reads. training_length: what lengths are
    multiples of. baseline: the arm that others are compared with. prepare: commands that make the data. page: the
    report's name under docs."""

    path: Path
    train: Path
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    baseline: str
    training_length: int
    evaluation: Mapping[str, Any]
    sweep: Mapping[str, Any] = field(default_factory=dict)
    held_out: str | None = None
    prepare: str = ""
    page: str = "quality"
    text: tuple[Path, ...] = ()
    loss_text: tuple[Path, ...] = ()
    assignments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.stem

    def check_data(self) -> None:
        """Raises StudyError where the training file names a token file that is not there, with what makes it, and
        ConfigError for a training file that cannot be used."""
        config = TrainConfig.from_file(self.train, self.assignments)
        token_files = {source.name: source.tokens for source in config.data if source.tokens is not None}
        for path in token_files.values():
            if not (path / HEADER).exists():
                make = f"; make it:\n{indent(self.prepare.strip(), '    ')}" if self.prepare else ""
                raise StudyError(f"{self.train}: there is no token file {path.resolve()}{make}")
        if self.held_out is not None and self.held_out not in token_files:
            names = ", ".join(token_files) or "none"
            raise StudyError(f"{self.path}: evaluation.held_out is {self.held_out!r}; token files: {names}")

    @classmethod
    def from_file(cls, path: Path) -> Study:
        """Raises StudyError and, for settings that evaluation refuses, EvalError."""
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StudyError(f"cannot read {path}: {error}") from error
        try:
            study = cls._from_dict(path, data)
        except KeyError as error:
            raise StudyError(f"{path}: {error.args[0]} is missing") from error
        if study.baseline not in [arm.name for arm in study.arms]:
            raise StudyError(f"{path}: baseline is {study.baseline!r}; it must be one of the arms")
        if len(set(study.seeds)) != len(study.seeds) or not study.seeds:
            raise StudyError(f"{path}: seeds are {list(study.seeds)}; they must differ, and there must be one")
        directories = [run.directory for run in study.runs()]
        if len(set(directories)) != len(directories):
            raise StudyError(f"{path}: two arms have names that differ in punctuation only")
        for arm in study.arms:
            study.evaluations(arm)
        return study

    @classmethod
    def _from_dict(cls, path: Path, data: dict[str, Any]) -> Study:
        evaluation = dict(data["evaluation"])
        text, loss_text = (tuple(path.parent / name for name in evaluation.pop(k, ())) for k in ("text", "loss_text"))
        length, held_out = evaluation.pop("training_length"), evaluation.pop("held_out", None)
        sweep = dict(evaluation.pop("sweep", {}))
        for key in sweep:
            if key not in SWEEP_KEYS:
                raise StudyError(f"{path}: evaluation.sweep.{key} is not known; accepted: {', '.join(SWEEP_KEYS)}")
        for table in (evaluation, sweep):
            table.update({name: tuple(table[name]) for name in ("tasks", "lengths") if name in table})
        arms = tuple(
            Arm(
                name,
                tuple(arm["attention"]),
                tuple(map(Variant.parse, arm["evaluate"])),
                tuple(arm.get("set", ())),
                bool(arm.get("sweep", False)),
            )
            for name, arm in data["arms"].items()
        )
        known = ("train", "prepare", "page", "seeds", "baseline", "set", "evaluation", "arms")
        unknown = sorted(set(data) - set(known))
        if unknown:
            raise StudyError(f"{path}: {unknown[0]!r} is not a key of a study; there are {', '.join(known)}")
        return cls(
            path=path,
            train=path.parent / data["train"],
            seeds=tuple(data["seeds"]),
            arms=arms,
            baseline=data["baseline"],
            training_length=length,
            evaluation=evaluation,
            sweep=sweep,
            held_out=held_out,
            prepare=data.get("prepare", ""),
            page=data.get("page", f"quality-{path.stem}"),
            text=text,
            loss_text=loss_text,
            assignments=tuple(data.get("set", ())),
        )

    def evaluations(self, arm: Arm) -> tuple[EvalSettings, ...]:
        """One after the other, into one file: the same prompts for every arm and seed."""
        own, others = arm.evaluate[:1], arm.evaluate[1:]
        if not self.sweep:
            return (self._settings(arm.evaluate),)
        if arm.sweep:
            return (self._settings(arm.evaluate, **self.sweep),)
        return (self._settings(own), *([self._settings(others, **self.sweep)] if others else []))

    def _settings(self, variants: tuple[Variant, ...], **changes: Any) -> EvalSettings:
        try:
            return EvalSettings(**{**self.evaluation, **changes}, variants=variants)
        except TypeError as error:
            raise StudyError(f"{self.path}: evaluation: {error}") from error

    def runs(self) -> Iterator[Run]:
        """The comparison before the sweeps, and seed by seed: a study that is interrupted has whole comparisons."""
        for sweep, seed in itertools.product((False, True), self.seeds):
            for arm in self.arms:
                if arm.sweep is sweep:
                    modes = [f'stage.{i}.attention="{mode}"' for i, mode in enumerate(arm.attention, 1)]
                    yield Run(arm, seed, (f"run.seed={seed}", *self.assignments, *modes, *arm.assignments))
