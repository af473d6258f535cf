"""A whole small model against llama.cpp, both holding the same random weights: prompt and decode.

llama.cpp computes MSA only with flash attention on; without it every layer runs dense, which is another function of
the input. So the baseline is its fastest setting with flash attention on, over micro-batch sizes and storage types;
dense is shown too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.compare import require
from bench.harness import WORK, Row, Session, Target, progress
from bench.peers.gguf_model import write_gguf
from bench.peers.llama_cpp import LlamaCpp, llama_cpp
from bench.peers.random_model import Geometry, random_weights, write_checkpoint
from bench.shapes import tokens
from longsight.model import Model, load_model
from longsight.model.replay import StepReplay
from longsight.ops import Batch, LayerPages

NAME = "llama_cpp"
TITLE = "whole model (4 layers, 1 full + 3 sparse, same random weights) against llama.cpp"
PROMPT, DECODE, DEPTH = Target(8.0), Target(8.0), 1 << 13
CHUNK = 2048  # our prompt tokens per step: the engine's default
MICRO_BATCHES = (128, 512, 2048)
STORAGE = ("f16", "bf16")
# llama.cpp rounds activations to fp16 in front of every product; a flipped expert or block moves single rows by far
# more, so the median row is compared. Dense instead of MSA moves the median row by 3e-2.
LLAMA_LIMIT, BF16_LIMIT, TOP1 = 5e-3, 6e-2, 0.05


def run(session: Session) -> None:
    model, speeds, shape = prepare(session)
    storage, batch, peer_detail = best_setting(session, speeds)
    prompt_row(session, model, speeds[storage], batch, session.pick(DEPTH, 512), PROMPT, peer_detail, shape)

    depth = session.pick(DEPTH, 512)
    mine = decode_speed(session, model, depth)
    by_storage = {s: speed.decode(depth) for s, speed in speeds.items()}
    detail = {**peer_detail, "ours_tokens_per_s": mine, "llama_tokens_per_s": by_storage}
    where = {"depth": tokens(depth), **shape}
    session.add(Row("decode, over llama.cpp", mine / max(by_storage.values()), "x", where, DECODE, detail))


def prepare(session: Session) -> tuple[Model, dict[str, Llama], dict[str, object]]:
    """Both sides with the same weights, their logits compared. -> our model, llama.cpp by storage type, the shape."""
    geometry = Geometry()
    weights = random_weights(geometry)
    WORK.mkdir(parents=True, exist_ok=True)
    checkpoint = write_checkpoint(WORK / "random-m3", geometry, weights)
    files = {s: write_gguf(WORK / f"random-m3-{s}.gguf", geometry, weights, s) for s in session.pick(STORAGE, ("f16",))}
    peer, threads = llama_cpp(), torch.get_num_threads()
    compare(session, peer, checkpoint, files, geometry.vocab)

    model = load_model(checkpoint, dtype=torch.bfloat16)
    speeds = {s: Llama(session, peer, file, threads) for s, file in files.items()}
    session.note(
        f"llama.cpp: {peer.origin}; best of {', '.join(files)} and micro-batches, flash attention on; KV cache f16"
    )
    session.note("random token ids on both sides, logits of the last row only, no sampling")
    session.note("ours computes the last layer only for that row, once its keys are written")
    shape: dict[str, object] = {
        "hidden": geometry.hidden,
        "layers": geometry.layers,
        "heads": f"{geometry.heads}/{geometry.kv_heads}",
    }
    return model, speeds, shape


def prompt_row(
    session: Session,
    model: Model,
    llama: Llama,
    batch: int,
    n: int,
    target: Target,
    peer_detail: dict[str, object],
    shape: dict[str, object],
) -> None:
    """Reading n tokens, beside llama.cpp and (up to 8K) its dense mode."""
    mine = prompt_speed(session, model, n)
    other = llama.prompt(n, batch)
    detail = {**peer_detail, "ours_tokens_per_s": mine, "llama_tokens_per_s": other}
    if n <= 1 << 13 and not session.quick:
        detail["llama_dense_tokens_per_s"] = llama.prompt(n, batch, flash=False)
    goal = None if session.quick else target
    session.add(Row("prompt, over llama.cpp", mine / other, "x", {"tokens": tokens(n), **shape}, goal, detail))


class Llama:
    """llama-bench on one file."""

    def __init__(self, session: Session, peer: LlamaCpp, file: Path, threads: int) -> None:
        self.session, self.peer, self.file, self.threads = session, peer, file, threads

    def prompt(self, n: int, batch: int, flash: bool = True) -> float:
        """Tokens/s of reading n tokens, once: thousands of tokens are repeats enough."""
        return self._best(prompt=n, generate=0, depth=0, batch=batch, repeats=1, flash=flash)

    def decode(self, depth: int) -> float:
        """Tokens/s of generating 64 tokens after `depth` tokens, once: llama-bench reads the depth anew each time."""
        return self._best(prompt=0, generate=64, depth=depth, batch=512, repeats=1, flash=True)

    def _best(self, *, prompt: int, generate: int, depth: int, batch: int, repeats: int, flash: bool) -> float:
        what = f"prompt {prompt}" if prompt else f"decode at {depth}"
        self.session.settle()
        with progress(f"llama.cpp: {what}, {self.file.stem}, micro-batch {batch}, flash {int(flash)}"):
            row: dict[str, Any] = self.peer.measure(
                self.file,
                prompt=prompt,
                generate=generate,
                depth=depth,
                threads=self.threads,
                flash=flash,
                batch=batch,
                repeats=1 if self.session.quick else repeats,
            )
        return float(max(row["samples_ts"]))


def best_setting(session: Session, speeds: dict[str, Llama]) -> tuple[str, int, dict[str, object]]:
    """llama.cpp's fastest way to read a prompt of 4,096 tokens: storage, micro-batch, and what to note about them."""
    sweep = {
        (storage, batch): speed.prompt(session.pick(4096, 256), batch)
        for storage, speed in speeds.items()
        for batch in session.pick(MICRO_BATCHES, (512,))
    }
    storage, batch = max(sweep, key=lambda key: sweep[key])
    noted = {f"{s}, {b}": value for (s, b), value in sweep.items()}
    return storage, batch, {"storage": storage, "ubatch": batch, "sweep_tokens_per_s": noted}


def compare(session: Session, peer: LlamaCpp, checkpoint: Path, files: dict[str, Path], vocab: int) -> None:
    """Logits of the last rows of a prompt, past k blocks: ours in fp32 against llama.cpp, then ours in bf16 against
    fp32.
    """
    n, first = session.pick((4096, 3968), (2304, 2288))
    prompt = random_tokens(n, vocab, seed=1)
    exact = logits(load_model(checkpoint, dtype=torch.float32), prompt, first)
    for storage, file in files.items():
        with progress(f"{NAME}: llama.cpp's logits, {storage}"):
            theirs = peer.logits_of(file, prompt, first_row=first, flash=True, threads=torch.get_num_threads())
        limit = LLAMA_LIMIT if storage == "f16" else BF16_LIMIT
        agree(
            session,
            f"logits of {n - first} rows at {n} tokens, llama.cpp {storage} against ours in fp32",
            theirs,
            exact,
            limit,
        )
    mine = logits(load_model(checkpoint, dtype=torch.bfloat16), prompt, first)
    agree(
        session, f"logits of {n - first} rows at {n} tokens, ours in bf16 against ours in fp32", mine, exact, BF16_LIMIT
    )


def agree(session: Session, what: str, got: Tensor, want: Tensor, limit: float) -> None:
    """The median row's relative rms difference, and for llama.cpp's f16 the share of rows with another first choice."""
    row = (got - want).square().mean(-1).sqrt() / want.square().mean(-1).sqrt()
    session.passed(require(f"{what}: median row", row.median().item(), limit))
    if limit == LLAMA_LIMIT:
        other = (got.argmax(-1) != want.argmax(-1)).float().mean().item()
        session.passed(require(f"{what}: rows whose likeliest token differs", other, TOP1))


def random_tokens(n: int, vocab: int, seed: int) -> Tensor:
    return torch.randint(0, vocab, (n,), generator=torch.Generator().manual_seed(seed))


def read_prompt(model: Model, cache: list[LayerPages], prompt: Tensor, first_row: int) -> list[Tensor]:
    """Run a prompt in chunks; logits of the rows from `first_row` on, chunk by chunk (of none but those)."""
    block, n, found = model.config.block_size, prompt.shape[0], []
    for start in range(0, n, CHUNK):
        stop = min(start + CHUNK, n)
        batch = Batch.build([(stop - start, stop, range(-(-stop // block)))])
        rows = torch.arange(max(first_row - start, 0), stop - start) if stop > first_row else torch.arange(0)
        out = model.forward(prompt[start:stop], batch, cache, logit_rows=rows)
        if rows.numel():
            found.append(out)
    return found


def logits(model: Model, prompt: Tensor, first_row: int) -> Tensor:
    cache = model.allocate_cache(-(-prompt.shape[0] // model.config.block_size))
    return torch.cat(read_prompt(model, cache, prompt, first_row))


def prompt_speed(session: Session, model: Model, n: int) -> float:
    """Our tokens/s of reading n tokens, best of the repeats."""
    prompt = random_tokens(n, model.config.vocab_size, seed=2)
    cache = model.allocate_cache(-(-n // model.config.block_size))
    times = session.race({f"ours, prompt {n}": lambda: read_prompt(model, cache, prompt, n - 1)}, repeats=3, warmup=0)
    return n / times[f"ours, prompt {n}"].best


def decode_speed(session: Session, model: Model, depth: int, steps: int = 32) -> float:
    """Our tokens/s of `steps` single tokens after `depth` as the engine runs them, best of the repeats."""
    block = model.config.block_size
    pages = -(-(depth + steps) // block)
    cache = model.allocate_cache(pages)
    replay = StepReplay(model, cache, pages)
    forward = replay.forward if replay.supports(1) else lambda ids, batch: model.forward(ids, batch, cache)
    read_prompt(model, cache, random_tokens(depth, model.config.vocab_size, seed=3), depth - 1)
    ids = random_tokens(steps, model.config.vocab_size, seed=4)

    def generate() -> None:
        for i in range(steps):
            batch = Batch.build([(1, depth + i + 1, range(-(-(depth + i + 1) // block)))])
            forward(ids[i : i + 1], batch)

    return steps / session.race({"ours, decode": generate}, repeats=5)["ours, decode"].best
