"""What the demo tells when the answer has come: figures on the terminal, and two pictures."""

from __future__ import annotations

import sys
from pathlib import Path

from longsight.cli.demo_dense import DensePrice
from longsight.cli.demo_plots import plot_selection, plot_time
from longsight.cli.demo_puzzle import Puzzle
from longsight.cli.demo_server import ANSWER_TOKENS, Run
from longsight.engine import Engine, Request
from longsight.model.tokenizer import Tokenizer


def report(puzzle: Puzzle, run: Run, request: Request, engine: Engine, peak: int) -> None:
    """peak: bytes."""
    config, tokens = engine.model.config, len(request.prompt)
    shown = (run.answer.strip().splitlines() or ["(nothing)"])[0]
    right = "right" if puzzle.is_right(run.answer) else f"WRONG, it is {puzzle.answer}"
    pages = -(-(tokens + ANSWER_TOKENS) // config.block_size) * engine.page_bytes
    weights = engine.model.weight_bytes
    read = sum(step.seconds for step in run.steps if step.prompt_tokens)
    print(f"\nanswer  {shown}   {right}\n")
    print(f"prefill           {tokens / read:,.0f} tokens/s ({read:.1f} s of steps; the last layer attends only where")
    print(f"                  logits are wanted, so this is the attention of {layers_read(engine)})")
    print(f"time to first token  {run.first_token:.1f} s over HTTP")
    if run.last_token > run.first_token:
        rate = (len(request.output) - 1) / (run.last_token - run.first_token)
        print(f"decode            {rate:.0f} tokens/s at {tokens:,} tokens of context")
    print(
        f"peak memory       {peak / 2**20:,.0f} MiB: pages {pages / 2**20:,.0f}, weights {weights / 2**20:.0f}, "
        f"the rest {(peak - pages - weights) / 2**20:,.0f} (interpreter, libraries and client included)"
    )


def layers_read(engine: Engine) -> str:
    """The layers that attend while a prompt is read, in words."""
    layers = engine.model.config.num_layers
    return f"{layers - 1} of {layers} layers"


def report_dense(tokens: int, run: Run, dense: DensePrice) -> None:
    seconds = dense.points[-1][1]
    whole = dense.prompt_seconds(tokens)
    print(
        f"dense attention   {whole:,.{0 if whole > 10 else 1}f} s for one layer's attention alone, "
        f"{whole / run.first_token:.1f} times the time to first token;\n"
        f"                  our own dense kernel, {dense.rate / 1e9:,.0f} GFLOP/s measured up to "
        f"{dense.longest:,} tokens\n"
        f"                  ({1e6 * seconds:.0f} us per token there), extrapolated by FLOPs"
    )


def draw(
    out: Path, puzzle: Puzzle, run: Run, request: Request, tokenizer: Tokenizer, engine: Engine, dense: DensePrice
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    config, tokens = engine.model.config, len(request.prompt)
    # A text goes on after the answer, up to the limit; what is said in a chat ends with it.
    answer = request.output if puzzle.chat else request.output[: len(tokenizer.encode_plain(puzzle.answer))]
    plot_selection(
        out / "selected-blocks.png",
        request.selections,
        [tokenizer.decode([token]) for token in answer],
        tokens=tokens,
        block_size=config.block_size,
        needle=puzzle.needle,
    )
    chunks = [(s.context - s.prompt_tokens // 2, s.seconds / s.prompt_tokens) for s in run.steps if s.prompt_tokens]
    # The last chunk also records what was selected, for all its rows in every layer: that is not prefill's own time.
    chunks = chunks[:-1] or chunks
    decode = sorted(s.seconds for s in run.steps if not s.prompt_tokens)
    answered = (tokens, decode[len(decode) // 2]) if decode else chunks[-1]
    plot_time(
        out / "time-per-token.png", chunks, dense, tokens=tokens, answered=answered, layers_read=layers_read(engine)
    )
    print(f"\npictures          {out / 'selected-blocks.png'}   which blocks were read for the answer")
    print(f"                  {out / 'time-per-token.png'}   time per token against context length")


def peak_bytes() -> int:
    """The most memory this process has held."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
