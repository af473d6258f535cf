"""Confidence intervals: what a figure of so many trials, documents or training seeds is worth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import special

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure and the bounds of its interval (at 95 % unless said otherwise). n: independent things it rests on."""

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float | None]:
        """For JSON, which has no infinity and no NaN: None instead."""
        return {name: number if math.isfinite(number) else None for name, number in asdict(self).items()}


def wilson(successes: float, trials: float, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a proportion. Counts may be fractional: effective sample sizes are."""
    if trials <= 0:
        return 0.0, 1.0
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    p = successes / trials
    middle = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    # At p = 0 and 1 the bound is p itself, which rounding may miss.
    return (0.0 if p <= 0 else max(middle - half, 0.0)), (1.0 if p >= 1 else min(middle + half, 1.0))


def accuracy(prompts: Sequence[Sequence[float]], level: float = LEVEL) -> Estimate:
    """The mean of scores between 0 and 1, prompt by prompt, with a Wilson interval.

    Questions about one prompt are not independent: trials are counted as p (1 - p) / variance of the prompts' means
    would have them, but as no fewer than there are prompts and no more than there are questions.
    """
    scores = [score for prompt in prompts for score in prompt]
    if not scores:
        return Estimate(math.nan, 0.0, 1.0, 0)
    p = sum(scores) / len(scores)
    trials = float(len(scores))
    if len(prompts) > 1:
        # The variance of a ratio of sums, by linearisation: prompts may have different numbers of questions.
        mean = len(scores) / len(prompts)
        apart = [sum(score - p for score in prompt) / mean for prompt in prompts]
        variance = sum(a * a for a in apart) / (len(prompts) - 1) / len(prompts)
        if variance > 0:
            trials = min(max(p * (1 - p) / variance, len(prompts)), trials)
    else:
        trials = 1.0
    return Estimate(p, *wilson(p * trials, trials, level), len(prompts))


def mean(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """The mean of independent values with Student's t interval: unbounded for a single one."""
    n = len(values)
    if n == 0:
        return Estimate(math.nan, -math.inf, math.inf, 0)
    middle = math.fsum(values) / n
    if n == 1:
        return Estimate(middle, -math.inf, math.inf, 1)
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * statistics.stdev(values) / math.sqrt(n)
    return Estimate(middle, middle - half, middle + half, n)


def paired(ours: Sequence[float], theirs: Sequence[float], level: float = LEVEL) -> Estimate:
    """The mean of ours[i] - theirs[i], pairs sharing a seed: what differs between the seeds cancels."""
    return mean([a - b for a, b in zip(ours, theirs, strict=True)], level)


def bootstrap(seeds: Sequence[float], level: float = LEVEL, *, draws: int = 10_000, seed: int = 0) -> Estimate:
    """The mean over training seeds with a percentile interval: what other draws of as many seeds might have given.

    With three seeds it is too narrow (it cannot leave the range seen); it shows the spread, and no more. One seed says
    nothing of others: unbounded.
    """
    if len(seeds) < 2:
        return mean(seeds, level)
    values = np.array(seeds, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (draws, len(values)))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(values.mean()), float(low), float(high), len(values))
