"""Sampling: exact distributions, ties, extremes, independence from neighbours, and drafts that change nothing."""

from __future__ import annotations

import math
from array import array

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fake_model import sample_rows
from longsight.engine import Grammar, InvalidRequestError, SamplingParams
from longsight.engine.sampler import Rows, Sampled, SamplingState, draw, logprob

LOGITS = torch.log(torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2]))


def state(prompt: tuple[int, ...] = (1,), stop_ids: tuple[int, ...] = (), **params: object) -> SamplingState:
    return SamplingState(SamplingParams(**params), array("i", prompt), stop_ids=stop_ids)  # type: ignore[arg-type]


def one(logits: torch.Tensor, who: SamplingState) -> int:
    sampled = sample_rows(logits[None], [Rows(who, 0)])[0]
    assert not isinstance(sampled, Exception)
    return sampled[0].token


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
    assert one(tied, state(temperature=0)) == 1
    assert one(tied, state(temperature=0, logit_bias={0: 2.0})) == 0
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
        tokens = sample_rows(rows, [Rows(state(temperature=temperature, seed=0), i) for i in range(len(rows))])
        assert [isinstance(t, FloatingPointError) for t in tokens] == [False, True, True, False, True]
        assert tokens[3] == [Sampled(1)]
    assert sample_rows(torch.zeros(0, 5), []) == []


def test_a_seed_repeats_and_neighbours_do_not_matter() -> None:
    def answer(neighbours: int) -> list[object]:
        states = [state(seed=7), *(state() for _ in range(neighbours))]
        logits = LOGITS.expand(len(states), -1)
        return [sample_rows(logits, [Rows(s, i) for i, s in enumerate(states)])[0] for _ in range(50)]

    assert answer(0) == answer(0) == answer(3)
    assert len({str(a) for a in answer(0)}) > 1


def test_penalties_are_those_of_their_definitions() -> None:
    logits = torch.tensor([1.0, -1.0, 2.0, 0.5, -0.25])
    who = state((1, 1, 2), temperature=0, repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5)
    for token in (3, 3, 0):
        who.advance(token)
    # Prompt and output tokens first halve (or double, where negative); output tokens then lose 0.25 + 0.5 a time.
    want = [1.0 / 2 - 0.25 - 0.5, -1.0 * 2, 2.0 / 2, 0.5 / 2 - 0.25 - 1.0, -0.25]
    seen: list[torch.Tensor] = []
    biased = state((1, 1, 2), temperature=0, repetition_penalty=2.0, logit_bias={1: 5.0, 4: -100.0})
    biased.advance(3)
    for s, expected in ((who, want), (biased, [1.0, -2.0 + 5.0, 1.0, 0.25, -100.25])):
        seen.append(s._adjusted(logits))
        torch.testing.assert_close(seen[-1], torch.tensor(expected))
    assert torch.equal(logits, torch.tensor([1.0, -1.0, 2.0, 0.5, -0.25])), "the row belongs to the caller"


def test_repetition_penalty_is_that_of_transformers() -> None:
    processor = pytest.importorskip("transformers").RepetitionPenaltyLogitsProcessor(1.3)
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    prompt, output = (3, 9, 9, 27), (4, 9, 31)
    who = state(prompt, temperature=0, repetition_penalty=1.3)
    for token in output:
        who.advance(token)
    torch.testing.assert_close(
        who._adjusted(logits), processor(torch.tensor([prompt + output]), logits[None].clone())[0]
    )


@pytest.mark.parametrize("name", ["min_p", "top_k", "top_p"])
def test_filters_keep_what_transformers_keeps(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    warper, value = {
        "min_p": (transformers.MinPLogitsWarper(0.2), 0.2),
        "top_k": (transformers.TopKLogitsWarper(4), 4),
        "top_p": (transformers.TopPLogitsWarper(0.7), 0.7),
    }[name]
    for seed in range(5):
        logits = torch.randn(12, generator=torch.Generator().manual_seed(seed))
        kept = warper(None, logits[None].clone())[0].softmax(-1)
        found = quantiles(SamplingParams(**{name: value}), logits)  # type: ignore[arg-type]
        assert found == pytest.approx({i: p for i, p in enumerate(kept.tolist()) if p > 0}, abs=2e-3)


def test_the_answer_does_not_end_before_min_tokens() -> None:
    logits = torch.tensor([0.0, 5.0, 1.0])
    who = state(stop_ids=(1,), temperature=0, min_tokens=2)
    assert [one(logits, who) for _ in range(3)] == [2, 2, 1]


def test_suppressed_tokens_are_never_chosen() -> None:
    best = torch.tensor([1.0, 3.0, 3.0, 2.0])
    assert one(best, state(temperature=0, suppress_tokens=(1,))) == 2
    assert one(best, state(temperature=0, suppress_tokens=(1, 2), logit_bias={1: 100.0})) == 3
    drawn = {one(best, state(seed=seed, suppress_tokens=(1, 2))) for seed in range(50)}
    assert drawn == {0, 3}
    # The rows of a step are its own memory: they are not written to.
    assert best.tolist() == [1.0, 3.0, 3.0, 2.0]


def test_a_grammar_that_allows_nothing_else_goes_before_suppression() -> None:
    class Only:
        complete = False

        def mask(self) -> torch.Tensor:
            return torch.tensor([False, True, False])

        def accept(self, token: int) -> None: ...

    params = SamplingParams(temperature=0, suppress_tokens=(1,), grammar=Grammar("regex", "b"))
    who = SamplingState(params, array("i", (1,)), matcher=Only())
    assert one(torch.tensor([5.0, 1.0, 3.0]), who) == 1


@given(
    st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.7]),
    st.sets(st.integers(0, 4), max_size=4),
)
def test_drafts_change_nothing_where_tokens_are_suppressed(
    drafts: list[list[int]], temperature: float, suppressed: set[int]
) -> None:
    params = {"temperature": temperature, "seed": 3, "suppress_tokens": tuple(suppressed)}
    rows = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    alone, drafted = state(**params), state(**params)
    plain = [one(row, alone) for row in rows]
    assert not suppressed & set(plain)
    found: list[int] = []
    for guess in [*drafts, *([[]] * 8)]:
        at = len(found)
        guess = guess[: 7 - at] if at < 8 else []
        if at == 8:
            break
        (sampled,) = sample_rows(rows[at : at + 1 + len(guess)], [Rows(drafted, 0, guess)])
        assert not isinstance(sampled, Exception)
        found += [s.token for s in sampled]
    assert found == plain


def test_log_probabilities() -> None:
    found = logprob(LOGITS, 2, 3)
    assert found.logprob == pytest.approx(math.log(0.05), abs=1e-6)
    assert [t for t, _ in found.top] == [1, 3, 4]
    assert [p for _, p in found.top] == pytest.approx([math.log(p) for p in (0.4, 0.25, 0.2)], abs=1e-6)
    assert [t for t, _ in logprob(torch.zeros(6), 5, 4).top] == [0, 1, 2, 3]
    # They are the model's own, whatever is done to the logits afterwards.
    sampled = sample_rows(LOGITS[None], [Rows(state(temperature=0, logit_bias={2: 50.0}, logprobs=0), 0)])[0]
    assert not isinstance(sampled, Exception)
    assert sampled[0].token == 2
    assert sampled[0].logprob == logprob(LOGITS, 2, 0)


def next_row(text: list[int]) -> torch.Tensor:
    """Logits as a function of the text so far."""
    return 2 * torch.randn(6, generator=torch.Generator().manual_seed(hash(tuple(text[-3:])) % 10_000))


@given(
    drafts=st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=30, max_size=30),
    temperature=st.sampled_from([0.0, 0.8]),
    presence=st.sampled_from([0.0, 1.0]),
    top_p=st.sampled_from([1.0, 0.8]),
)
def test_drafts_change_no_answer(drafts: list[list[int]], temperature: float, presence: float, top_p: float) -> None:
    def answer(guesses: list[list[int]]) -> list[Sampled]:
        who = state(seed=5, temperature=temperature, presence_penalty=presence, top_p=top_p, logprobs=2)
        text: list[Sampled] = []
        for guess in guesses:
            known = [s.token for s in text]
            rows = torch.stack([next_row(known + guess[:i]) for i in range(len(guess) + 1)])
            new = sample_rows(rows, [Rows(who, 0, guess)])[0]
            assert not isinstance(new, Exception)
            assert [s.token for s in new[:-1]] == guess[: len(new) - 1]
            text += new
        return text

    guessed = answer(drafts)
    assert guessed == answer([[]] * len(guessed))


def test_a_drafted_token_comes_as_often_as_it_should() -> None:
    counts, n = [0] * 5, 20_000
    who = state(seed=11)
    second = torch.tensor([2.0, 0.0, 1.0, 0.0, 0.0]).log_softmax(-1)
    rows = torch.stack([LOGITS, second])
    pairs: dict[tuple[int, ...], int] = {}
    for _ in range(n):
        new = sample_rows(rows, [Rows(who, 0, (3,))])[0]
        assert not isinstance(new, Exception)
        counts[new[0].token] += 1
        tokens = tuple(s.token for s in new)
        pairs[tokens] = pairs.get(tokens, 0) + 1
    probability = LOGITS.exp().tolist()
    chi = sum((c - n * p) ** 2 / (n * p) for c, p in zip(counts, probability, strict=True))
    assert chi < 18.5, "4 degrees of freedom: beyond this lies 1 in 1,000"
    accepted = [pairs.get((3, t), 0) for t in range(5)]
    assert sum(accepted) == counts[3]
    chi = sum((c - counts[3] * p) ** 2 / (counts[3] * p) for c, p in zip(accepted, second.exp().tolist(), strict=True))
    assert chi < 18.5


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
        ("min_p", 1.1, "from 0 to 1"),
        ("min_tokens", 17, "0 to max_tokens"),
        ("repetition_penalty", 0.0, "from 0.01 to 100"),
        ("repetition_penalty", math.inf, "from 0.01 to 100"),
        ("presence_penalty", -2.5, "from -2 to 2"),
        ("frequency_penalty", math.nan, "from -2 to 2"),
        ("logit_bias", {5: 101.0}, "-100 to 100"),
        ("logprobs", 21, "0 to 20"),
        ("stop", ("",), "1 to 1024"),
        ("stop", ("x" * 1025,), "1 to 1024"),
        ("stop", tuple("abcdefghijklmnopq"), "up to 16"),
    ],
)
def test_absurd_parameters(field: str, value: object, accepted: str) -> None:
    with pytest.raises(InvalidRequestError, match=accepted) as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert caught.value.param == field
