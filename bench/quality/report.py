"""A page of docs and its plots from what the runs left behind. Every figure comes from a file; nothing is typed in."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.quality.study import FAILED, Arm, Study, finished
from longsight.evals import intervals
from longsight.evals.intervals import Estimate
from longsight.evals.plots import plot_accuracy, plot_loss
from longsight.evals.report import interval, table, tokens
from longsight.train.config import TrainConfig

LOSS_TARGET = 0.005  # of the baseline's loss
RETRIEVAL_TARGET = 0.01  # points below the baseline
RETRIEVAL = ("recall", "single", "multikey", "multiquery", "multivalue")
STATIC_TARGET = 0.1  # how far the static pattern must fall behind to be called visibly worse


def collect(study: Study, out: Path) -> dict[str, Any]:
    """What each run came to: {"study", "runs": [{"arm", "seed", "state", "validation", "parts"}]}."""
    runs = []
    for run in study.runs():
        directory = out / run.directory
        results, failed = directory / "evals" / "results.json", directory / FAILED
        state = "failed" if failed.exists() else "trained" if finished(directory) else "missing"
        runs.append(
            {
                "arm": run.arm.name,
                "seed": run.seed,
                "state": state,
                "reason": failed.read_text(encoding="utf-8").strip() if failed.exists() else None,
                "validation": _validation(directory / "log.csv"),
                "parts": json.loads(results.read_text(encoding="utf-8"))["parts"] if results.exists() else [],
            }
        )
    return {"study": study.name, "runs": runs}


def _validation(log: Path) -> float | None:
    """The last held-out loss of a run's log."""
    if not log.exists():
        return None
    with log.open(newline="", encoding="utf-8") as file:
        values = [float(row["validation"] or "nan") for row in csv.DictReader(file) if "validation" in row]
    return next((value for value in reversed(values) if math.isfinite(value)), None)


def write_report(study: Study, record: Mapping[str, Any], docs: Path) -> Path:
    """Write the study's page and images/PAGE-*.png under `docs`; returns the page."""
    images = docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    main = [arm for arm in study.arms if not arm.sweep]
    found = Findings(study, record)
    lines = ["# Quality", "", *_preamble(study, record)]
    lines += ["", "## Targets", "", *_targets(found, main)]
    lines += ["", "## Held-out loss", "", *_losses(found, study.arms)]
    for task in found.tasks():
        lines += ["", f"## Accuracy: {task}", "", *_accuracies(found, main, task)]
    panels = {task: {arm.name: found.curve(arm, task) for arm in main} for task in found.tasks()}
    if any(curve for curves in panels.values() for curve in curves.values()):
        plot_accuracy(images / f"{study.page}-accuracy.png", panels, "Accuracy against length, mean over seeds")
        lines += ["", f"![accuracy against length](images/{study.page}-accuracy.png)"]
    positions = {arm.name: curve for arm in main if (curve := found.positions(arm))}
    if positions:
        plot_loss(images / f"{study.page}-loss.png", positions, "Loss by position, mean over seeds")
        lines += ["", "## Perplexity by position", "", *_perplexities(found, main)]
        lines += ["", f"![loss by position](images/{study.page}-loss.png)"]
    sweeps = _sweeps(found)
    if sweeps:
        lines += ["", "## Number and size of blocks", "", *sweeps]
    page = docs / f"{study.page}.md"
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page


class Findings:
    """Values by arm, attention, task and length, one per training seed."""

    def __init__(self, study: Study, record: Mapping[str, Any]) -> None:
        self.study = study
        self.runs = [run for run in record["runs"] if run["state"] == "trained"]

    def tasks(self) -> list[str]:
        return list(dict.fromkeys(p["task"] for run in self.runs for p in run["parts"] if "accuracy" in p))

    def lengths(self) -> list[int]:
        return sorted({p["length"] for run in self.runs for p in run["parts"] if "accuracy" in p})

    def validation(self, arm: str) -> dict[int, float]:
        return {r["seed"]: r["validation"] for r in self.runs if r["arm"] == arm and r["validation"] is not None}

    def accuracy(self, arm: Arm, task: str, length: int, attention: str | None = None) -> dict[int, float]:
        """By seed. attention None: the arm's own."""
        name = attention or arm.evaluate[0].name
        return {
            run["seed"]: part["accuracy"]["value"]
            for run in self.runs
            if run["arm"] == arm.name
            for part in run["parts"]
            if part["attention"] == name
            and part.get("task") == task
            and part.get("length") == length
            and "accuracy" in part
        }

    def curve(self, arm: Arm, task: str) -> list[tuple[float, dict[str, Any]]]:
        """(length, mean over seeds with its bootstrap interval)."""
        return [
            (length, intervals.bootstrap([*values.values()]).to_dict())
            for length in self.lengths()
            if (values := self.accuracy(arm, task, length))
        ]

    def losses_by_position(self, arm: Arm) -> dict[tuple[int, int], list[float]]:
        """(first position, one past the last) -> nats, one per seed; in order."""
        buckets: dict[tuple[int, int], list[float]] = {}
        for run in self.runs:
            for part in run["parts"] if run["arm"] == arm.name else ():
                if "loss" in part and part["attention"] == arm.evaluate[0].name:
                    for bucket in part["loss"]:
                        buckets.setdefault((bucket["first"], bucket["last"]), []).append(bucket["value"])
        return dict(sorted(buckets.items()))

    def positions(self, arm: Arm) -> list[tuple[float, dict[str, Any]]]:
        losses = self.losses_by_position(arm)
        return [(math.sqrt(a * (b - 1)), intervals.bootstrap(values).to_dict()) for (a, b), values in losses.items()]

    @property
    def baseline(self) -> Arm:
        return next(arm for arm in self.study.arms if arm.name == self.study.baseline)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate:
    """ours - theirs over the seeds that both have."""
    seeds = [seed for seed in ours if seed in theirs]
    return intervals.paired([ours[s] for s in seeds], [theirs[s] for s in seeds])


def _preamble(study: Study, record: Mapping[str, Any]) -> list[str]:
    states = [run["state"] for run in record["runs"]]
    settings = study.evaluations(study.arms[0])[0]
    model = TrainConfig.from_file(study.train, study.assignments).model.config
    bound = f" or {settings.prompt_tokens:,} tokens of them" if settings.prompt_tokens else ""
    lines = [
        f"The same data, tokens and size under several kinds of attention: study `{study.name}`, {len(study.seeds)} "
        f"training seeds, trained at {study.training_length:,} tokens, {settings.trials} prompts{bound} per task, "
        f"length and seed, the same for all. Sparse attention reads {model.topk_blocks} blocks of {model.block_size} "
        "tokens a query where an arm's name says no other. Written by",
        "",
        f"    python -m bench.quality {_relative(study.path)}",
        "",
        f"from {states.count('trained')} of {len(states)} runs. Values are means over seeds; in brackets, a bootstrap "
        "over them (with three seeds it is the range seen, not more). Differences are paired by seed, with Student's t "
        "interval at 95 %.",
    ]
    for run in record["runs"]:
        if run["state"] == "failed":
            lines += ["", f"Failed: {run['arm']}, seed {run['seed']}: {run['reason']}"]
    return lines


def _targets(found: Findings, arms: Sequence[Arm]) -> list[str]:
    """Each target with what was measured; "open" where it was not."""
    base = found.baseline
    rows = []
    for arm in arms:
        if arm is base:
            continue
        theirs, ours = found.validation(base.name), found.validation(arm.name)
        static = arm.evaluate[0].static
        if not static:
            relative = {s: ours[s] / theirs[s] - 1 for s in ours if s in theirs}
            rows.append(
                _target(
                    f"{arm.name}: loss within {LOSS_TARGET:.1%} of {base.name}",
                    relative.values(),
                    lambda value: value <= LOSS_TARGET,
                    "{:+.2%}",
                )
            )
        for task in (t for t in found.tasks() if t in RETRIEVAL):
            worst = _worst(found, arm, base, task)
            if static:
                what = f"{arm.name}: {task} falls behind {base.name} by {100 * STATIC_TARGET:.0f} points somewhere"
                rows.append(_target(what, worst, lambda value: value <= -STATIC_TARGET, "{:+.3f}"))
            else:
                what = f"{arm.name}: {task} at most one point below {base.name} at every length"
                rows.append(_target(what, worst, lambda value: value >= -RETRIEVAL_TARGET, "{:+.3f}"))
    return table(["target", "measured", "met"], rows)


def _worst(found: Findings, arm: Arm, base: Arm, task: str) -> list[float]:
    """The mean difference at the length where it is lowest, as a list of one; empty without common seeds."""
    differences = [
        estimate.value
        for length in found.lengths()
        if (estimate := paired(found.accuracy(arm, task, length), found.accuracy(base, task, length))).n
    ]
    return [min(differences)] if differences else []


def _target(what: str, values: Iterable[float], good: Callable[[float], bool], form: str) -> list[str]:
    values = list(values)
    if not values:
        return [what, "-", "open"]
    value = sum(values) / len(values)
    return [what, form.format(value), "yes" if good(value) else "**no**"]


def _losses(found: Findings, arms: Sequence[Arm]) -> list[str]:
    theirs = found.validation(found.baseline.name)
    rows = []
    for arm in arms:
        ours = found.validation(arm.name)
        if ours:
            mean = intervals.bootstrap([*ours.values()])
            difference = interval(paired(ours, theirs).to_dict(), 4) if arm is not found.baseline else ""
            rows.append([arm.name, str(mean.n), interval(mean.to_dict(), 4), difference])
    if not rows:
        return ["No run has measured it."]
    return table(["arm", "seeds", "loss, nats", f"minus {found.baseline.name}"], rows)


def _perplexities(found: Findings, arms: Sequence[Arm]) -> list[str]:
    """exp of the mean loss over seeds."""
    losses = {arm.name: found.losses_by_position(arm) for arm in arms}
    places = sorted({place for by_place in losses.values() for place in by_place})
    rows = [
        [name, *(f"{math.exp(sum(v) / len(v)):,.4g}" if (v := by_place.get(p)) else "-" for p in places)]
        for name, by_place in losses.items()
        if by_place
    ]
    return table(["positions", *(f"{a:,} to {b - 1:,}" for a, b in places)], rows)


def _accuracies(found: Findings, arms: Sequence[Arm], task: str) -> list[str]:
    lengths = found.lengths()
    head = ["arm", *(f"{tokens(n)} ({n / found.study.training_length:g}x)" for n in lengths)]
    rows = []
    for arm in arms:
        cells = [found.accuracy(arm, task, n) for n in lengths]
        rows.append([arm.name, *(_mean(c) for c in cells)])
        if arm is not found.baseline:
            rows.append(
                [f"minus {found.baseline.name}"]
                + [
                    interval(paired(c, found.accuracy(found.baseline, task, n)).to_dict())
                    for c, n in zip(cells, lengths, strict=True)
                ]
            )
    return table(head, rows)


def _mean(values: Mapping[int, float]) -> str:
    return interval(intervals.bootstrap([*values.values()]).to_dict()) if values else "-"


def _sweeps(found: Findings) -> list[str]:
    """Arms trained with other numbers or sizes of blocks, and weights evaluated with others than trained with."""
    lengths = found.lengths()
    lines = []
    for task in found.tasks():
        rows = []
        for arm in found.study.arms:
            for i, variant in enumerate(arm.evaluate):
                if not (arm.sweep or i or len(arm.evaluate) > 1):
                    continue
                cells = [_mean(found.accuracy(arm, task, n, variant.name)) for n in lengths]
                if any(cell != "-" for cell in cells):
                    rows.append([f"{arm.name}, evaluated {variant.name}", *cells])
        if len(rows) > 1:  # something to compare
            lines += ["", f"{task}:", "", *table(["trained, evaluated", *map(tokens, lengths)], rows)]
    return lines[1:]


def _relative(path: Path) -> str:
    from bench.machine import ROOT

    return str(path.resolve().relative_to(ROOT)) if path.resolve().is_relative_to(ROOT) else path.name
