"""Soak: random arrivals, cancels, priorities and deadlines at twice what fits, and faults thrown in. Every completed
answer must be the solo one, and every page must come back.

LONGSIGHT_SOAK_SECONDS makes it run longer (`make bench` runs ten minutes).
"""

from __future__ import annotations

import os
import random
import time
from array import array
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longsight.engine import Engine, Request, SamplingParams
from longsight.engine.request import requests_for
from longsight.model import Model, load_model
from longsight.ops import supports
from tiny_checkpoint import CONFIG

BACKEND = "cpu" if supports("cpu") is None else "reference"
PAGES = 40


class Faulty:
    """Fails some forward passes, as a kernel without memory or with a defect would."""

    def __init__(self, model: Model, rng: random.Random) -> None:
        self._model, self._rng, self.failures = model, rng, 0
        self.armed = True

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def _maybe(self) -> None:
        if self.armed and self._rng.random() < 0.01:
            self.failures += 1
            raise self._rng.choice([MemoryError("no workspace"), RuntimeError("a defect")])

    def forward(self, *args: object, **options: object) -> object:
        self._maybe()
        return self._model.forward(*args, **options)  # type: ignore[arg-type]

    def inputs(self, *args: object) -> object:  # what replayed steps begin with
        self._maybe()
        return self._model.inputs(*args)  # type: ignore[arg-type]


Ask = tuple[bytes, SamplingParams]  # a prompt's token ids and what was asked of it


def answers_alone(model: Model, asked: set[Ask]) -> dict[Ask, list[int]]:
    """Each request on its own, one after the other, nothing reused or guessed."""
    e = Engine(model, kv_bytes=PAGES * CONFIG.page_bytes(), prefix_cache=False, speculate=False)
    outputs = {}
    for prompt, params in asked:
        alone = Request(array("i", prompt), params)
        list(e.generate(alone))
        outputs[prompt, params] = alone.output
    return outputs


def check_books(e: Engine) -> None:
    held: dict[int, int] = {}
    for r in e.scheduler.running:
        for page in r.pages:
            held[page] = held.get(page, 0) + 1
    assert e.pages.used == len(held)
    assert all(e.pages.holders(page) == count for page, count in held.items())


@pytest.mark.timeout(2400)
def test_soak(tiny_checkpoint: Path) -> None:
    seconds = float(os.environ.get("LONGSIGHT_SOAK_SECONDS", "8"))
    rng = random.Random(int(os.environ.get("LONGSIGHT_SOAK_SEED", "1")))
    real = load_model(tiny_checkpoint, backend=BACKEND)
    model = Faulty(real, rng)
    threads = torch.get_num_threads()
    e = Engine(model, kv_bytes=PAGES * CONFIG.page_bytes(), chunk_tokens=64, max_running=6)  # type: ignore[arg-type]
    stem = rng.choices(range(256), k=400)
    complete: list[tuple[Ask, list[int]]] = []
    live: list[Request] = []
    counts = dict.fromkeys(("added", "cancelled", "failed", "complete"), 0)
    started = time.monotonic()
    try:
        while time.monotonic() - started < seconds or e.has_work:
            if time.monotonic() - started < seconds:
                # Twice the pool's pages in demand at any time.
                wanted = sum((len(r.prompt) + r.params.max_tokens) // CONFIG.block_size + 1 for r in live)
                if wanted < 2 * PAGES:
                    prompt = stem[: rng.randint(0, 400)] + rng.choices(range(256), k=rng.randint(1, 80))
                    temperature = rng.choice([0.0, 0.0, 0.9])
                    params = SamplingParams(
                        n=rng.choice([1, 1, 1, 3]),
                        max_tokens=rng.randint(1, 40),
                        temperature=temperature,
                        seed=rng.randint(0, 999),
                        ignore_eos=True,
                        presence_penalty=rng.choice([0.0, 0.5]),
                    )
                    deadline = time.monotonic() + rng.uniform(0, 2) if rng.random() < 0.1 else None
                    for r in requests_for(prompt, params, priority=rng.choice([0, 0, 0, 1]), deadline=deadline):
                        e.add(r)
                        live.append(r)
                        counts["added"] += 1
            else:
                model.armed = False
            torch.set_num_threads(rng.choice([1, threads]))
            e.step()
            if live and rng.random() < 0.02:
                e.cancel(rng.choice(live))
            check_books(e)
            for r in live:
                if r.finish_reason == "length":
                    complete.append(((r.prompt.tobytes(), replace(r.params, n=1)), r.output))
                elif r.finish_reason is not None:
                    counts["cancelled" if r.finish_reason == "cancelled" else "failed"] += 1
            live = [r for r in live if not r.finished]
    finally:
        torch.set_num_threads(threads)
    assert not live
    assert e.pages.used == 0
    alone = answers_alone(real, {asked for asked, _ in complete})
    assert [asked for asked, output in complete if output != alone[asked]] == []
    counts["complete"] = len(complete)
    print(counts, "preemptions", e.scheduler.preemptions, "faults", model.failures, "cached", e.pages.cached)
    assert counts["complete"] > 0.5 * counts["added"]
    assert e.scheduler.preemptions > 0
    assert model.failures > 0
