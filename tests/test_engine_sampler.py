"""Sampling: exact distributions, ties, extremes, and independence from neighbours."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longsight.engine import InvalidRequestError, Request, SamplingParams
from longsight.engine.sampler import draw, sample

LOGITS = torch.log(torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2]))


def quantiles(params: SamplingParams, logits: torch.Tensor = LOGITS, steps: int = 2000) -> dict[int, float]:
    """The distribution `draw` realises, read off by sweeping its uniform number."""
    counts: dict[int, int] = {}
    for i in range(steps):
        token = draw(logits, params, (i + 0.5) / steps)
        counts[token] = counts.get(token, 0) + 1
    return {token: count / steps for token, count in sorted(counts.items())}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(), {0: 0.1, 1: 0.4, 2: 0.05, 3: 0.25, 4: 0.2}),
        (SamplingParams(top_p=0.6), {1: 0.4 / 0.65, 3: 0.25 / 0.65}),
        (SamplingParams(top_p=0.66), {1: 0.4 / 0.85, 3: 0.25 / 0.85, 4: 0.2 / 0.85}),
        (SamplingParams(top_p=0.0), {1: 1.0}),
        (SamplingParams(top_k=2), {1: 0.4 / 0.65, 3: 0.25 / 0.65}),
        (SamplingParams(top_k=99), {0: 0.1, 1: 0.4, 2: 0.05, 3: 0.25, 4: 0.2}),
        (SamplingParams(top_k=2, top_p=0.6), {1: 1.0}),  # top_p counts in what top_k left: 0.4 / 0.65 > 0.6
        (SamplingParams(temperature=1e-9), {1: 1.0}),
        (SamplingParams(temperature=0.5), {t: p**2 / 0.275 for t, p in enumerate((0.1, 0.4, 0.05, 0.25, 0.2))}),
    ],
)
def test_distribution(params: SamplingParams, expected: dict[int, float]) -> None:
    assert quantiles(params) == pytest.approx(expected, abs=2e-3)


def test_equal_logits_go_to_the_lower_id() -> None:
    tied = torch.tensor([1.0, 3.0, 3.0, 3.0])
    assert sample(tied[None], [Request([1], SamplingParams(temperature=0))]) == [1]
    assert set(quantiles(SamplingParams(top_k=2), tied)) == {1, 2}
    assert set(quantiles(SamplingParams(top_p=0.5), torch.zeros(10))) == {0, 1, 2, 3, 4}


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=30),
    st.floats(0, 1),
    st.integers(0, 40),
    st.floats(0.01, 2),
    st.floats(0, 1, exclude_max=True),
)
def test_only_the_nucleus_is_drawn(values: list[float], top_p: float, top_k: int, temperature: float, u: float) -> None:
    logits = torch.tensor(values, dtype=torch.float32)
    token = draw(logits, SamplingParams(top_p=top_p, top_k=top_k, temperature=temperature), u)
    probability = torch.softmax(logits.double() / temperature, -1)
    likelier = probability[probability > probability[token]]
    assert not top_k or len(likelier) < top_k
    if not top_k:
        assert float(likelier.sum()) < top_p + 1e-9 or len(likelier) == 0


def test_a_row_without_meaning_is_reported_and_leaves_the_others_alone() -> None:
    rows = torch.tensor([[0.0, 1.0], [math.nan, 1.0], [math.inf, 0.0], [-math.inf, 2.0], [-math.inf, -math.inf]])
    for temperature in (0.0, 1.0):
        requests = [Request([1], SamplingParams(temperature=temperature, seed=0)) for _ in rows]
        tokens = sample(rows, requests)
        assert tokens[1] is tokens[2] is tokens[4] is None
        assert tokens[3] == 1
        assert tokens[0] is not None
    assert sample(torch.zeros(0, 5), []) == []


def test_a_seed_repeats_and_neighbours_do_not_matter() -> None:
    def answer(neighbours: int) -> list[int | None]:
        requests = [Request([1], SamplingParams(seed=7)), *(Request([1]) for _ in range(neighbours))]
        return [sample(LOGITS.expand(len(requests), -1), requests)[0] for _ in range(50)]

    assert answer(0) == answer(0) == answer(3)
    assert len(set(answer(0))) > 1


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("temperature", -1.0, "from 0 to 2"),
        ("temperature", math.nan, "from 0 to 2"),
        ("temperature", 2.1, "from 0 to 2"),
        ("top_p", -0.1, "from 0 to 1"),
        ("top_p", 1.5, "from 0 to 1"),
        ("top_k", -1, "at least 0"),
        ("max_tokens", 0, "at least 1"),
        ("stop", ("",), "1 to 1024"),
        ("stop", ("x" * 1025,), "1 to 1024"),
        ("stop", tuple("abcdefghijklmnopq"), "up to 16"),
    ],
)
def test_absurd_parameters(field: str, value: object, accepted: str) -> None:
    with pytest.raises(InvalidRequestError, match=accepted) as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert caught.value.param == field
