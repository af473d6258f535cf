"""Samples through an engine: greedy answers, batched, each context read once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from longsight.engine import Engine, Request, SamplingParams
from longsight.engine.memory import WORKSPACE_BYTES, available_bytes
from longsight.evals.sample import Question, Sample
from longsight.model import Model
from longsight.model.tokenizer import Tokenizer

MAX_RUNNING = 16


@dataclass
class Asked:
    """A sample's answers, in the order of its questions.

    scores: 0..1. read: whether a block of the evidence was chosen by some sparse layer and group for the first token of
    the answer, in a chat for any; None where nothing chooses or nothing is known.
    """

    sample: Sample
    scores: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    read: list[bool | None] = field(default_factory=list)


def build_engine(model: Model, tokenizer: Tokenizer | None, longest: int, max_running: int = MAX_RUNNING) -> Engine:
    """Room for `max_running` requests of `longest` tokens, or for what memory allows. Raises EngineConfigError."""
    pages = -(-longest // model.config.block_size)
    page_bytes = model.config.page_bytes(model.dtype)
    wanted = page_bytes * pages * max_running
    free = max(available_bytes() - WORKSPACE_BYTES, page_bytes * pages)
    # Without screens: pages of the same size whatever the length, and the same choice.
    return Engine(
        model,
        tokenizer,
        max_model_len=longest,
        kv_bytes=min(wanted, free),
        max_running=max_running,
        screen=False,
    )


def ask(engine: Engine, samples: Iterable[Sample], block_size: int) -> Iterator[Asked]:
    """Each sample when all of its questions are answered. Samples are drawn as they are needed. Raises what the engine
    refuses them for, and what a step raised."""
    coming = iter(samples)
    running: dict[Request, tuple[Asked, int]] = {}
    in_flight = 0
    more = True
    while more or running:
        while more and in_flight < MAX_RUNNING:
            sample = next(coming, None)
            if sample is None:
                more = False
                break
            count = len(sample.questions)
            asked = Asked(sample, [0.0] * count, [""] * count, [None] * count)
            _add(engine, running, asked, 0)
            in_flight += 1
        for update in engine.step() if running else ():
            asked, i = running[update.request]
            if update.error is not None:
                raise update.error
            asked.texts[i] += update.text
            if update.finish_reason is None:
                continue
            del running[update.request]
            question = asked.sample.questions[i]
            asked.scores[i] = question.score(update.request.output, asked.texts[i])
            asked.read[i] = _evidence_read(update.request, question, block_size)
            if i == 0:
                # Now the context is in pages, and these find it there.
                for j in range(1, len(asked.sample.questions)):
                    _add(engine, running, asked, j)
            if not any(other is asked for other, _ in running.values()):
                in_flight -= 1
                yield asked


def _add(engine: Engine, running: dict[Request, tuple[Asked, int]], asked: Asked, i: int) -> None:
    question = asked.sample.questions[i]
    params = SamplingParams(max_tokens=question.max_tokens, temperature=0)
    prompt = asked.sample.context[:]
    prompt.extend(question.tokens)
    request = Request(prompt, params, record_selection=True)
    engine.add(request)
    running[request] = (asked, i)


def _evidence_read(request: Request, question: Question, block_size: int) -> bool | None:
    if not question.evidence or not request.selections:
        return None
    chosen = [
        set(blocks) for s in request.selections if question.in_sentence or s.token_index == 0 for blocks in s.blocks
    ]
    wanted = [set(range(a // block_size, (b - 1) // block_size + 1)) for a, b in question.evidence]
    return all(any(blocks & choice for choice in chosen) for blocks in wanted)
