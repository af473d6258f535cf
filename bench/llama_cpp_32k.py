"""A 32K prompt through the whole small model against llama.cpp, which takes about ten minutes for its side."""

from __future__ import annotations

from bench.harness import Session, Target
from bench.llama_cpp import best_setting, prepare, prompt_row

NAME = "llama_cpp_32k"
TITLE = "whole model against llama.cpp, prompt of 32K"
PROMPT = Target(15.0)


def run(session: Session) -> None:
    model, speeds, shape = prepare(session)
    storage, batch, peer_detail = best_setting(session, speeds)
    prompt_row(session, model, speeds[storage], batch, session.pick(1 << 15, 512), PROMPT, peer_detail, shape)
