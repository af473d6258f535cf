"""The engine around the kernels: overhead, many streams, prefix reuse, guessing, restart."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.compare import require
from bench.harness import WORK, Row, Session, Target, progress
from bench.peers.random_model import Geometry, random_weights, write_checkpoint
from bench.shapes import tokens
from longsight.engine import Engine, Request, SamplingParams, StepStats
from longsight.model import Model, load_model
from longsight.model.constructed import constructed_path
from longsight.model.tokenizer import Tokenizer
from longsight.ops import Batch

NAME = "engine"
TITLE = "engine: overhead, batches, prefix reuse, guessing, restart"
STREAMS = 16
OVERHEAD = Target(300.0, at_least=False)
BATCH = Target(1.15, at_least=False)


def run(session: Session) -> None:
    geometry = Geometry()
    WORK.mkdir(parents=True, exist_ok=True)
    checkpoint = write_checkpoint(WORK / "random-m3", geometry, random_weights(geometry))
    model = load_model(checkpoint, dtype=torch.bfloat16)
    path = constructed_path()
    lookup, tokenizer = load_model(path), Tokenizer.from_dir(path)
    many_streams(session, model)
    prefix_reuse(session, model)
    guessing(session, lookup, tokenizer, model)
    restart(session, lookup, tokenizer)


def ids(n: int, vocab: int, seed: int) -> list[int]:
    return torch.randint(3, vocab, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def greedy(prompt: Sequence[int], count: int) -> Request:
    return Request(prompt, SamplingParams(max_tokens=count, temperature=0, ignore_eos=True))


def engine_for(model: Model, tokens_held: int, **options: Any) -> Engine:
    block = model.config.block_size
    pages = -(-tokens_held // block) + STREAMS
    return Engine(
        model,
        **{"kv_bytes": pages * model.config.page_bytes(model.dtype, screened=True), "max_running": STREAMS, **options},
    )


def finish(engine: Engine, requests: Sequence[Request]) -> float:
    """Seconds until all requests, given at once, have their answers."""
    started = time.perf_counter()
    for request in requests:
        engine.add(request)
    while engine.has_work:
        engine.step()
    return time.perf_counter() - started


def many_streams(session: Session, model: Model) -> None:
    """16 streams at a depth: answers equal to each alone, Python's part of a step, and the step over its floor."""
    depth, count = session.pick(8192, 300), session.pick(120, 20)
    prompts = [ids(depth + 37 * i, model.config.vocab_size, i) for i in range(STREAMS)]
    stats: list[StepStats] = []
    engine = engine_for(model, STREAMS * (depth + 800), speculate=False, on_step=stats.append)
    requests = [greedy(p, count) for p in prompts]
    session.settle()
    with progress(f"{NAME}: 16 streams at {depth}"):
        finish(engine, requests)
    alone = greedy(prompts[3], count)
    finish(engine_for(model, depth + 800, speculate=False), [alone])
    wrong = sum(a != b for a, b in zip(alone.output, requests[3].output, strict=True))
    session.passed(require("tokens of a stream among 16 that differ from those alone", wrong, 0))

    full = [s for s in stats if s.decode_tokens == STREAMS and not s.prompt_tokens]
    outside = [1e6 * (s.seconds - s.kernel_seconds) for s in full]
    where = {"streams": STREAMS, "depth": tokens(depth)}
    step = statistics.median(s.seconds for s in full)
    session.add(
        Row("outside model and kernels, per step", statistics.median(outside), "us", where, OVERHEAD, {"step_s": step})
    )
    attention = sum(attention_seconds(model, len(p) + count) for p in prompts)
    weights = weight_seconds(session, model)
    detail = {"step_s": step, "attention_sum_s": attention, "weights_s": weights}
    ratio = step / (attention + weights)
    session.add(Row("step over attention of each alone + one read of the weights", ratio, "x", where, BATCH, detail))


def attention_seconds(model: Model, depth: int) -> float:
    """One decoded token's selection and attention in all layers, alone, over pages of zeros; median of several."""
    from longsight.model.replay import StepReplay

    pages = -(-(depth + 1) // model.config.block_size)
    cache = model.allocate_cache(pages)
    for layer in cache:
        for tensor in (layer.k, layer.v, layer.index_k):
            if tensor is not None:
                tensor.normal_()
    replay = StepReplay(model, cache, pages)
    replay.forward(torch.tensor([5]), Batch.build([(1, depth, range(pages))]))
    tape = replay.tapes()[0].only({"ls_select_blocks", "ls_attention"})
    cold = torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
    times = []
    for _ in range(5):
        cold.add_(1)  # what a step reads in between, weights and other requests' pages, leaves no cache warm
        started = time.perf_counter()
        tape.replay()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def weight_seconds(session: Session, model: Model) -> float:
    """One streaming read of all weights that 16 tokens use: every expert is among them here."""
    from longsight.ops import kernels

    embedding = model.config.vocab_size * model.config.hidden_size * model.dtype.itemsize
    rate = kernels.stream_read_bandwidth(256 << 20, torch.get_num_threads(), repeats=3)
    return (model.weight_bytes - embedding) / rate


def prefix_reuse(session: Session, model: Model) -> None:
    """Agents that share a long beginning: the time of 16 requests with and without the prefix cache."""
    shared, own = session.pick(8192, 300), 64
    beginning = ids(shared, model.config.vocab_size, 77)
    prompts = [beginning + ids(own, model.config.vocab_size, 100 + i) for i in range(STREAMS)]
    seconds, outputs, cached = {}, {}, 0
    for reuse in (True, False):
        engine = engine_for(model, STREAMS * (shared + 300), prefix_cache=reuse)
        finish(engine, [greedy(beginning, 1)])
        requests = [greedy(p, 8) for p in prompts]
        session.settle()
        with progress(f"{NAME}: 16 prompts, prefix cache {'on' if reuse else 'off'}"):
            seconds[reuse] = finish(engine, requests)
        outputs[reuse] = [r.output for r in requests]
        cached = cached if not reuse else sum(r.cached_tokens for r in requests)
    wrong = sum(a != b for a, b in zip(outputs[True], outputs[False], strict=True))
    session.passed(require("answers after a prefix hit that differ from cold ones", wrong, 0))
    where = {"shared": tokens(shared), "own": own, "requests": STREAMS}
    detail = {"with_s": seconds[True], "without_s": seconds[False], "cached_tokens": cached}
    session.add(Row("prefix reuse, time saved", seconds[False] / seconds[True], "x", where, detail=detail))


def guessing(session: Session, lookup: Model, tokenizer: Tokenizer, other: Model) -> None:
    """Prompt lookup where text is copied and where nothing repeats."""
    source = Path(__file__).read_text() * session.pick(4, 1)
    copying = tokenizer.encode(source + "\n\n" + source[:400])
    count = session.pick(400, 40)
    cases: dict[str, tuple[Model, Sequence[int]]] = {
        "copying text": (lookup, copying),
        "random text": (other, ids(session.pick(4096, 300), other.config.vocab_size, 5)),
    }
    for what, (model, prompt) in cases.items():
        seconds: dict[bool, list[float]] = {True: [], False: []}
        outputs, stats = {}, list[StepStats]()
        session.settle()
        with progress(f"{NAME}: guessing, {what}"):
            for _ in range(session.pick(3, 1)):
                for speculate in (True, False):
                    engine = engine_for(model, len(prompt) + 1000, speculate=speculate)
                    engine.on_step = stats.append if speculate else None
                    request = greedy(prompt, count)
                    engine.add(request)
                    while not request.output:
                        engine.step()
                    started = time.perf_counter()
                    while engine.has_work:
                        engine.step()
                    seconds[speculate].append(time.perf_counter() - started)
                    outputs[speculate] = request.output
        wrong = sum(a != b for a, b in zip(outputs[True], outputs[False], strict=True))
        session.passed(require(f"tokens that guessing changed, {what}", wrong, 0))
        drafted, accepted = sum(s.drafted for s in stats), sum(s.accepted for s in stats)
        detail = {
            "drafted": drafted,
            "accepted": accepted,
            "with_s": min(seconds[True]),
            "without_s": min(seconds[False]),
        }
        gain = min(seconds[False]) / min(seconds[True])
        session.add(
            Row(f"guessing, {what}", gain, "x", {"prompt": tokens(len(prompt)), "answer": count}, detail=detail)
        )


def restart(session: Session, model: Model, tokenizer: Tokenizer) -> None:
    """A prompt read before a restart, asked again after it; and what a mapped pool costs against plain memory."""
    n = session.pick(200_000, 3000)
    text = Path(__file__).read_text()
    prompt = list(tokenizer.encode(text * (n // len(text) + 1)))[:n]
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        options: dict[str, Any] = {"speculate": False}
        mapped: dict[str, Any] = {**options, "kv_dir": Path(folder), "fingerprint": b"bench"}
        times: dict[str, float] = {}
        outputs = {}
        rounds: list[tuple[str, dict[str, Any]]] = [("memory", options), ("file", mapped), ("after restart", mapped)]
        session.settle()
        for what, chosen in rounds:
            with progress(f"{NAME}: {tokens(n)} tokens, {what}"):
                engine = engine_for(model, n + 4096, **chosen)
                request = greedy(prompt, 20)
                times[what] = _timed(lambda: finish(engine, [request]))  # noqa: B023
                outputs[what] = request.output
                engine.close()
    wrong = sum(outputs[what] != outputs["memory"] for what in outputs)
    session.passed(require("answers from a file, or after a restart, that differ", wrong, 0))
    where, detail = {"prompt": tokens(n)}, {f"{k}_s": v for k, v in times.items()}
    session.add(
        Row(
            "prompt read before a restart, time saved",
            times["file"] / times["after restart"],
            "x",
            where,
            detail=detail,
        )
    )
    session.add(Row("pages in a file over pages in memory", times["file"] / times["memory"], "x", where, detail=detail))


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
