"""The engine over a stand-in network: requests side by side, failures, cancellation, and no page lost by any."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fake_model import BLOCK, EOS, VOCAB, ByteTokenizer, FakeModel, LookupModel, expected_output, next_token
from longsight.engine import (
    ContextLengthError,
    Engine,
    EngineConfigError,
    Grammar,
    InvalidRequestError,
    Request,
    SamplingParams,
    StepFailedError,
    StepStats,
    Update,
)


def engine(model: FakeModel | None = None, *, pages: int = 40, **options: object) -> Engine:
    model = model or FakeModel()
    options = {"chunk_tokens": 32, "max_running": 4, **options}
    return Engine(model, ByteTokenizer(), kv_bytes=pages * model.config.page_bytes(), **options)  # type: ignore[arg-type]


def greedy(prompt: list[int], max_tokens: int = 8, **options: object) -> Request:
    return Request(prompt, SamplingParams(max_tokens=max_tokens, temperature=0, **options))  # type: ignore[arg-type]


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return [(i * i + 31 * seed + 7) % (VOCAB - 1) for i in range(length)]


def run_all(e: Engine) -> list[Update]:
    updates: list[Update] = []
    while e.has_work:
        updates.extend(e.step())
    return updates


@given(
    lengths=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 20)), min_size=1, max_size=7),
    chunk=st.integers(1, 50),
    running=st.integers(1, 4),
)
@settings(deadline=None, max_examples=40)
def test_every_answer_is_what_it_would_be_alone(lengths: list[tuple[int, int]], chunk: int, running: int) -> None:
    e = engine(pages=9, chunk_tokens=chunk, max_running=running)
    requests = [greedy(prompt_of(n, i), m) for i, (n, m) in enumerate(lengths)]
    for r in requests:
        e.add(r)
    run_all(e)
    for r in requests:
        assert r.output == expected_output(r.prompt, r.params.max_tokens)
        assert r.finish_reason == "length"
    assert e.pages.used == 0


def test_updates_tell_the_whole_story() -> None:
    stats: list[StepStats] = []
    e = engine(on_step=stats.append)
    r = greedy(prompt_of(70), 3)
    updates = list(e.generate(r))
    assert [u.processed for u in updates] == [32, 64, 70, 70, 70]
    assert [list(u.tokens) for u in updates] == [[], [], *([t] for t in r.output)]
    assert [u.finish_reason for u in updates] == [None, None, None, None, "length"]
    assert "".join(u.text for u in updates) == ByteTokenizer().decode(r.output)
    assert [(s.prompt_tokens, s.decode_tokens, s.context) for s in stats] == [
        (32, 0, 32),
        (32, 0, 64),
        (6, 0, 70),
        (0, 1, 71),
        (0, 1, 72),
    ]
    assert all(s.seconds > 0 and s.tokens_per_second > 0 for s in stats)


def test_a_running_stream_goes_on_while_a_long_prompt_is_read() -> None:
    e = engine()
    first, long = greedy(prompt_of(5), 50), greedy(prompt_of(300, 1), 2)
    e.add(first)
    e.step()
    e.add(long)
    tokens_meanwhile = 0
    while not long.output:
        tokens_meanwhile += sum(u.request is first and bool(u.tokens) for u in e.step())
    assert tokens_meanwhile == math.ceil(300 / 32)


def test_end_of_sequence() -> None:
    prompt = prompt_of(20)
    model = FakeModel()
    third = expected_output(prompt, 3)[-1]
    model.config.eos_token_ids = (third,)
    r = greedy(prompt)
    updates = list(engine(model).generate(r))
    assert r.finish_reason == "stop"
    assert r.output == expected_output(prompt, 3)
    assert "".join(u.text for u in updates) == ByteTokenizer().decode(r.output[:2])
    unstoppable = greedy(prompt, 8, ignore_eos=True)
    list(engine(model).generate(unstoppable))
    assert len(unstoppable.output) == 8


class SpellingModel(FakeModel):
    """Writes `text`, byte by byte, whatever it is asked."""

    text = b"the answer is 42.\nAnd more"

    def forward(self, token_ids, batch, cache, **options):  # type: ignore[no-untyped-def]
        logits = super().forward(token_ids, batch, cache, **options)
        logits.zero_()
        for row, position in enumerate(batch.positions[options["logit_rows"]].tolist()):
            logits[row, self.text[(position - 2) % len(self.text)]] = 5.0
        return logits


def test_a_stop_string_across_tokens_ends_the_request() -> None:
    e = engine(SpellingModel())
    r = Request([1, 2, 3], SamplingParams(max_tokens=99, temperature=0, stop=("is 43", ".\n")))
    updates = list(e.generate(r))
    assert "".join(u.text for u in updates) == "the answer is 42"
    assert r.finish_reason == "stop"
    assert e.pages.used == 0


def test_held_back_text_comes_out_at_the_end() -> None:
    r = Request([1, 2, 3], SamplingParams(max_tokens=12, temperature=0, stop=("is 43",)))
    updates = list(engine(SpellingModel()).generate(r))
    assert "".join(u.text for u in updates) == "the answer i"
    assert r.finish_reason == "length"


def test_a_failing_step_ends_its_own_requests_only() -> None:
    model = FakeModel()
    e = engine(model, max_running=2)
    caught, also, waits = greedy(prompt_of(10), 9), greedy(prompt_of(40, 1), 9), greedy(prompt_of(12, 2), 9)
    for r in (caught, also, waits):
        e.add(r)
    e.step()

    def explode(tokens: list[int]) -> None:
        raise RuntimeError("a defect in a kernel")

    model.before = explode
    updates = e.step()
    assert {u.request for u in updates} == {caught, also}
    assert all(isinstance(u.error, StepFailedError) and "a defect in a kernel" in str(u.error) for u in updates)
    assert all(u.finish_reason == "error" for u in updates)
    assert e.pages.used == 0
    model.before = None
    run_all(e)
    assert waits.output == expected_output(waits.prompt, 9)
    assert e.pages.used == 0


def test_logits_that_are_not_finite_end_one_request() -> None:
    class Sick(FakeModel):
        def forward(self, token_ids, batch, cache, **options):  # type: ignore[no-untyped-def]
            logits = super().forward(token_ids, batch, cache, **options)
            logits[token_ids[options["logit_rows"]] == 201] = math.nan
            return logits

    e = engine(Sick())
    well, sick = greedy(prompt_of(8), 4), greedy([201], 4)
    e.add(well)
    e.add(sick)
    run_all(e)
    assert sick.finish_reason == "error"
    assert well.output == expected_output(well.prompt, 4)
    assert e.pages.used == 0


def test_text_that_cannot_be_decoded_ends_one_request() -> None:
    class Picky(ByteTokenizer):
        def decode(self, ids):  # type: ignore[no-untyped-def]
            if next_token([9]) in ids:
                raise KeyError("no such token")
            return super().decode(ids)

    e = engine()
    e.tokenizer = Picky()
    bad, good = greedy([9], 4), greedy(prompt_of(30), 1)
    e.add(bad)
    e.add(good)
    run_all(e)
    assert (bad.finish_reason, good.finish_reason) == ("error", "length")
    assert e.pages.used == 0


@pytest.mark.parametrize("steps", range(6))
def test_cancel_at_any_moment_frees_the_pages(steps: int) -> None:
    e = engine(pages=12)
    gone, stays, queued = greedy(prompt_of(70), 9), greedy(prompt_of(20, 1), 9), greedy(prompt_of(150, 2), 9)
    for r in (gone, stays, queued):
        e.add(r)
    for _ in range(steps):
        e.step()
    e.cancel(gone)
    e.cancel(gone)
    e.cancel(queued)
    held = e.pages.used
    assert held == len(stays.pages)
    run_all(e)
    assert stays.output == expected_output(stays.prompt, 9)
    assert queued.output == []
    assert e.pages.used == 0


def test_leaving_generate_early_cancels() -> None:
    e = engine()
    updates = e.generate(greedy(prompt_of(100), 50))
    next(updates)
    updates.close()
    assert e.pages.used == 0
    assert not e.has_work


def test_a_request_that_was_never_added_may_be_cancelled() -> None:
    engine().cancel(greedy([1]))


def test_seeded_sampling_repeats_whatever_else_runs() -> None:
    class Flat(FakeModel):
        def forward(self, token_ids, batch, cache, **options):  # type: ignore[no-untyped-def]
            return super().forward(token_ids, batch, cache, **options) * 0.4

    def answer(*neighbours: Request) -> list[int]:
        e = engine(Flat())
        r = Request(prompt_of(40), SamplingParams(max_tokens=12, seed=5, ignore_eos=True))
        for n in neighbours:
            e.add(n)
        e.add(r)
        run_all(e)
        return r.output

    alone = answer()
    assert answer() == alone
    assert answer(greedy(prompt_of(50, 3), 20), Request([4], SamplingParams(max_tokens=9))) == alone
    assert len(set(alone)) > 3


def test_the_selection_of_generated_tokens_is_recorded() -> None:
    e = engine()
    watched = Request(prompt_of(70), SamplingParams(max_tokens=3, temperature=0), record_selection=True)
    other = greedy(prompt_of(33, 1), 5)
    e.add(other)
    e.add(watched)
    run_all(e)
    # The stand-in "selects" the block of each position, in layers 1 and 2; token 0 comes from the last prompt position.
    own = [(69 + i) // BLOCK for i in range(3)]
    assert [(s.token_index, s.layer, s.blocks) for s in watched.selections] == [
        (i, layer, ((own[i],),)) for i in range(3) for layer in (1, 2)
    ]
    assert other.selections == []


def test_steps_that_only_read_are_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watched step selects for all its rows in every layer, which a prompt's other chunks need not pay for."""
    model, seen = FakeModel(), []
    forward = model.forward

    def watched(token_ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append((len(token_ids), kwargs.get("on_select") is not None))
        return forward(token_ids, *args, **kwargs)

    monkeypatch.setattr(model, "forward", watched)
    e = engine(model)
    e.add(Request(prompt_of(70), SamplingParams(max_tokens=2, temperature=0), record_selection=True))
    run_all(e)
    assert seen == [(32, False), (32, False), (6, True), (1, True)]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "empty"),
        ([1, VOCAB], f"token id {VOCAB} is not in the vocabulary; ids run from 0 to {VOCAB - 1}"),
        ([-1], "token id -1"),
        ([2**40], "token ids must be integers"),
        ([1.5], "token ids must be integers"),
    ],
)
def test_prompts_that_are_wrong(prompt: list, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        engine().add(Request(prompt))


def test_a_prompt_over_the_limit() -> None:
    e = engine(pages=4)
    with pytest.raises(ContextLengthError) as caught:
        e.add(greedy(prompt_of(60), 5))
    assert "65 tokens" in str(caught.value)
    assert f"5 pages of {BLOCK}" in str(caught.value)
    assert not e.has_work
    list(e.generate(greedy(prompt_of(60), 4)))  # exactly what there is


def test_limits_come_from_the_model_and_the_memory() -> None:
    assert engine(pages=4).max_model_len == 4 * BLOCK
    assert engine(pages=10_000).max_model_len == FakeModel().config.max_position_embeddings
    assert engine(pages=40, max_model_len=100).max_model_len == 100
    assert Engine(FakeModel()).pages.total == FakeModel().config.max_position_embeddings // BLOCK
    with pytest.raises(EngineConfigError):
        engine(pages=0)


def test_stop_strings_need_a_tokenizer() -> None:
    e = Engine(FakeModel(), kv_bytes=10**4)
    with pytest.raises(InvalidRequestError, match="tokenizer"):
        e.add(Request([1], SamplingParams(stop=("x",))))
    r = greedy([1, 2], 2)
    assert [u.text for u in e.generate(r)] == ["", ""]
    assert r.output == expected_output([1, 2], 2)


def test_pages_are_reused_from_poisoned_memory() -> None:
    e = engine(pages=6)
    for i in range(10):
        r = greedy(prompt_of(50 + i, i), 9)
        list(e.generate(r))
        assert r.output == expected_output(r.prompt, 9)
        e.prefix_cache.clear()  # or the next one would rightly reuse what is poisoned now
        e.runner.cache[0].slots.fill_(-(10**9))


def test_eos_is_never_the_stand_ins_own_choice() -> None:
    assert all(next_token(torch.randint(0, EOS, (9,)).tolist()) != EOS for _ in range(20))


@pytest.mark.parametrize("speculate", [True, False])
def test_repetition_and_suppression_are_the_same_with_drafts_and_neighbours(speculate: bool) -> None:
    """A loop is cut after the same token, and a suppressed token leaves the loop at the same place."""
    e = engine(LookupModel(), pages=200, speculate=speculate)
    loop = list(b"abcabcabcabcabc")
    cut = Request(loop, SamplingParams(max_tokens=300, temperature=0, max_repetition=64))
    free = greedy(loop, 300)
    held = Request(loop, SamplingParams(max_tokens=9, temperature=0, suppress_tokens=(ord("b"), 0)))
    for r in (cut, free, held):
        e.add(r)
    run_all(e)
    assert (len(cut.output), cut.finish_reason) == (64, "length")
    assert (len(free.output), free.finish_reason) == (300, "length")
    assert free.output[:64] == cut.output
    # Without b and with the lowest id gone too, the first of the equal rest comes next.
    assert bytes(held.output[:2]) == b"a\1"
    assert not {ord("b"), 0} & set(held.output)


def test_suppressed_tokens_must_exist_and_leave_one() -> None:
    with pytest.raises(InvalidRequestError, match=f"suppress_tokens names token {VOCAB}; ids run from 0"):
        engine().add(greedy([1], suppress_tokens=(VOCAB,)))
    with pytest.raises(InvalidRequestError, match=f"suppress_tokens names all {VOCAB} tokens"):
        engine().add(greedy([1], suppress_tokens=tuple(range(VOCAB))))
    with pytest.raises(InvalidRequestError, match="max_repetition is 5; it must be an integer of at least 64"):
        SamplingParams(max_repetition=5)
    with pytest.raises(InvalidRequestError, match="grammar is 'json'; it must be one of json_schema"):
        Grammar("json", "{}")  # type: ignore[arg-type]
