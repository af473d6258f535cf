"""The constructed model at a million tokens: time to read, decode speed there, and memory beyond pages and weights."""

from __future__ import annotations

import statistics

import torch

from bench.compare import require
from bench.harness import Row, Session, Target, child
from bench.shapes import tokens

NAME = "million"
TITLE = "constructed model, 1,048,576 tokens, through the engine"
ANSWER_ROOM = 64
READ, DECODE, EXTRA = Target(480.0, at_least=False), Target(40.0), Target(512.0, at_least=False)


def run(session: Session) -> None:
    context = session.pick(1 << 20, 1 << 12)
    session.settle()
    result = child("bench.workers.million", str(context - ANSWER_ROOM), str(torch.get_num_threads()))
    wrong = sum(
        a != b for a, b in zip(result["answer"].ljust(len(result["expected"])), result["expected"], strict=True)
    )
    what = f"bytes of the answer that are wrong ({result['answer']!r} for {result['expected']!r})"
    session.passed(require(what, wrong, 0))

    where = {"context": tokens(context), "prompt": context - ANSWER_ROOM}
    detail = {key: value for key, value in result.items() if key != "token_s"}
    detail["decode_median_s"] = statistics.median(result["token_s"])
    session.add(Row("time to first token", result["read_s"], "s", where, READ, detail))
    session.add(Row("read", (context - ANSWER_ROOM) / result["read_s"], "tokens/s", where))
    rate = len(result["token_s"]) / sum(result["token_s"])
    session.add(Row("decode at the end of the context", rate, "tokens/s", where, DECODE, detail))
    extra = result["peak_rss_bytes"] - result["page_bytes"] - result["weight_bytes"]
    session.add(Row("peak memory beyond pages and weights", extra / 2**20, "MiB", where, EXTRA, detail))
    session.note("the last of the two layers attends only where logits are wanted: reading is one layer's attention")
    session.note("the peak counts the whole process, interpreter and libraries included")
