"""What a study consists of: its TOML file as frozen values, and the runs that follow from it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longsight.evals import EvalSettings, Variant
from longsight.ops.errors import LongsightError

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
    """train: the training file. text, loss_text: files that evaluation reads; evaluation: EvalSettings without its
    variants. training_length: what lengths are multiples of. baseline: the arm that others are compared with."""

    path: Path
    train: Path
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    baseline: str
    training_length: int
    evaluation: Mapping[str, Any]
    text: tuple[Path, ...] = ()
    loss_text: tuple[Path, ...] = ()
    assignments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.stem

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
        study.settings(study.arms[0])
        return study

    @classmethod
    def _from_dict(cls, path: Path, data: dict[str, Any]) -> Study:
        evaluation = dict(data["evaluation"])
        text, loss_text = (tuple(path.parent / name for name in evaluation.pop(k, ())) for k in ("text", "loss_text"))
        length = evaluation.pop("training_length")
        for name in ("tasks", "lengths"):
            evaluation[name] = tuple(evaluation[name])
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
        known = ("train", "seeds", "baseline", "set", "evaluation", "arms")
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
            text=text,
            loss_text=loss_text,
            assignments=tuple(data.get("set", ())),
        )

    def settings(self, arm: Arm) -> EvalSettings:
        """The same prompts for every arm and seed."""
        try:
            return EvalSettings(**self.evaluation, variants=arm.evaluate)
        except TypeError as error:
            raise StudyError(f"{self.path}: evaluation: {error}") from error

    def runs(self) -> Iterator[Run]:
        """Seed by seed, so that a study that is interrupted has whole comparisons."""
        for seed in self.seeds:
            for arm in self.arms:
                modes = [f'stage.{i}.attention="{mode}"' for i, mode in enumerate(arm.attention, 1)]
                yield Run(arm, seed, (f"run.seed={seed}", *self.assignments, *modes, *arm.assignments))
