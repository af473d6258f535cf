"""`longsight demo`: a real server reads a million tokens of real text and answers from the middle of it."""

from __future__ import annotations

import argparse
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longsight.cli.options import positive
from longsight.cli.progress import ProgressBar

if TYPE_CHECKING:
    from longsight.engine import Engine, Request, StepStats
    from longsight.model.needle import NeedlePrompt
    from longsight.model.tokenizer import Tokenizer

EPILOG = """\
examples:
  longsight demo                        1,048,576 tokens, about four minutes on two cores with AVX-512
  longsight demo --tokens 131072        about ten seconds
  longsight demo --text war-and-peace.txt --depth 0.5

The model is constructed, not trained: it continues the text with what followed the best earlier match. It is right only
if sparse attention selects the one block, of thousands, that holds the needle.
"""
DECODE_TOKENS = 64
MODEL_ID = "longsight"


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="read a million tokens of real text and answer from the middle of it",
        description="Hide a sentence in real text, serve the built-in model, ask for the sentence over HTTP.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tokens", type=positive, default=1 << 20, metavar="N", help="prompt length (default 1048576)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="text to read; default: sources found on the machine")
    parser.add_argument("--depth", type=float, metavar="D", help="where to hide it, 0 (start) to 1; default: at random")
    parser.add_argument("--seed", type=int, help="of the depth and the code; default: at random")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads; default: all cores")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), metavar="DIR", help="for the pictures")


@dataclass
class Run:
    """What the client saw and the engine measured."""

    answer: str = ""
    first_token: float = 0.0  # seconds from the request to the first token
    decode: list[float] = field(default_factory=list)  # seconds between further tokens
    steps: list[StepStats] = field(default_factory=list)


def run(args: argparse.Namespace) -> int:
    import torch
    from openai import OpenAIError

    from longsight.cli.demo_dense import price_dense
    from longsight.cli.demo_errors import DemoFailedError
    from longsight.cli.demo_text import gather_text
    from longsight.engine import Engine
    from longsight.model import load_model
    from longsight.model.constructed import constructed_path
    from longsight.model.tokenizer import Tokenizer

    if args.threads:
        torch.set_num_threads(args.threads)
    seed = random.randrange(10**6) if args.seed is None else args.seed
    depth = random.Random(seed).random() if args.depth is None else args.depth
    text, source = gather_text(args.tokens, args.text)
    prompt = _hide(text, args.tokens, depth, seed)
    print(f"text    {source}; {len(prompt.text):,} tokens (one per character)")
    print(f"needle  token {prompt.needle[0]:,}, depth {depth:.3f}, seed {seed}")
    print(f"asked   {prompt.question.strip()} ...")

    path = constructed_path()
    model = load_model(path)
    print(f"model   constructed, not trained; {model.weight_bytes / 1e6:.1f} MB; backend {model.backend.NAME}")
    result = Run()
    tokenizer = Tokenizer.from_dir(path)
    engine = Engine(model, tokenizer, max_model_len=args.tokens + DECODE_TOKENS, on_step=result.steps.append)
    with _server(engine, tokenizer, path) as (url, requests):
        try:
            _ask(url, prompt, result)
        except OpenAIError as error:
            raise DemoFailedError(f"the server did not answer: {error}") from error
    peak = _peak_bytes()
    dense = price_dense(model, args.tokens)
    right = result.answer.startswith(prompt.answer)
    _report(args.tokens, prompt, result, engine, peak, right)
    _report_dense(args.tokens, result, dense)
    _draw(args.out, args.tokens, prompt, requests[0], result, dense, model.config.block_size)
    return 0 if right else 1


def _hide(text: str, tokens: int, depth: float, seed: int) -> NeedlePrompt:
    from longsight.cli.demo_errors import NotEnoughTextError
    from longsight.model.needle import hide_needle

    try:
        return hide_needle(text, tokens, depth, seed=seed)
    except ValueError as error:
        raise NotEnoughTextError(str(error)) from error


@contextmanager
def _server(engine: Engine, tokenizer: Tokenizer, path: Path) -> Iterator[tuple[str, list[Request]]]:
    """The real server on a free port of the loopback address; its requests, which record what they select."""
    import uvicorn

    from longsight.chat.template import ChatTemplate
    from longsight.engine import EngineDriver
    from longsight.server.app import create_app
    from longsight.server.listen import listen
    from longsight.server.service import Service

    requests: list[Request] = []

    class RecordingService(Service):
        def requests(self, *args: Any, **kwargs: Any) -> list[Request]:
            made = super().requests(*args, **kwargs)
            for request in made:
                request.record_selection = True
            requests.extend(made)
            return made

    driver = EngineDriver(engine)
    service = RecordingService(driver, tokenizer, MODEL_ID, ChatTemplate.from_checkpoint(path))
    config = uvicorn.Config(create_app(service), log_level="warning", access_log=False, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", requests
        finally:
            server.should_exit = True
            thread.join(10)
            driver.close(5)


def _ask(url: str, prompt: NeedlePrompt, result: Run) -> None:
    """One streamed completion through the official client."""
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=24 * 3600)
    started = time.perf_counter()
    last = 0.0
    with ProgressBar("reading") as bar:
        stream = client.completions.create(
            model=MODEL_ID,
            prompt=prompt.text,
            max_tokens=DECODE_TOKENS,
            temperature=0,
            stream=True,
            extra_body={"return_progress": True},
        )
        for chunk in stream:
            now = time.perf_counter()
            progress = (chunk.model_extra or {}).get("prompt_progress")
            if progress:
                done, total = progress["processed"], progress["total"]
                bar.update(done, total, f"{done / (now - started):,.0f} tokens/s")
            for choice in chunk.choices:
                if choice.text:
                    if not result.answer:
                        result.first_token = now - started
                        bar.stop()
                    else:
                        result.decode.append(now - last)
                    last = now
                    result.answer += choice.text


def _report(tokens: int, prompt: NeedlePrompt, result: Run, engine: Engine, peak: int, right: bool) -> None:
    shown = result.answer.split("\n")[0]
    pages = -(-(tokens + DECODE_TOKENS) // engine.model.config.block_size) * engine.page_bytes
    weights = engine.model.weight_bytes
    read = sum(step.seconds for step in result.steps if step.prompt_tokens)
    print(f"\nanswer  {shown}   {'right' if right else f'WRONG, it is {prompt.answer}'}\n")
    print(f"prefill           {tokens / read:,.0f} tokens/s ({read:.1f} s of steps; the last layer attends only where")
    print("                  logits are wanted, so this is the attention of one of the model's two layers)")
    print(f"time to first token  {result.first_token:.1f} s over HTTP")
    if result.decode:
        print(
            f"decode            {len(result.decode) / sum(result.decode):.0f} tokens/s at {tokens:,} tokens of context"
        )
    print(
        f"peak memory       {peak / 2**20:,.0f} MiB: pages {pages / 2**20:,.0f}, weights {weights / 2**20:.0f}, "
        f"the rest {(peak - pages - weights) / 2**20:,.0f} (interpreter, libraries and client included)"
    )


def _report_dense(tokens: int, result: Run, dense: Any) -> None:
    seconds = dense.points[-1][1]
    whole = dense.prompt_seconds(tokens)
    print(
        f"dense attention   {whole:,.{0 if whole > 10 else 1}f} s for one layer's attention alone, "
        f"{whole / result.first_token:.1f} times the time to first token;\n"
        f"                  our own dense kernel, {dense.rate / 1e9:,.0f} GFLOP/s measured up to "
        f"{dense.longest:,} tokens\n"
        f"                  ({1e6 * seconds:.0f} us per token there), extrapolated by FLOPs"
    )


def _draw(
    out: Path, tokens: int, prompt: NeedlePrompt, request: Request, result: Run, dense: Any, block_size: int
) -> None:
    from longsight.cli.demo_plots import plot_selection, plot_time

    out.mkdir(parents=True, exist_ok=True)
    plot_selection(
        out / "selected-blocks.png",
        request.selections,
        prompt.answer,
        tokens=tokens,
        block_size=block_size,
        needle=prompt.needle,
    )
    chunks = [(s.context - s.prompt_tokens // 2, s.seconds / s.prompt_tokens) for s in result.steps if s.prompt_tokens]
    # The last chunk also records what was selected, for all its rows in both layers: that is not prefill's own time.
    chunks = chunks[:-1] or chunks
    decode = sorted(s.seconds for s in result.steps if not s.prompt_tokens)
    answered = (tokens, decode[len(decode) // 2]) if decode else chunks[-1]
    plot_time(out / "time-per-token.png", chunks, dense, tokens=tokens, answered=answered)
    print(f"\npictures          {out / 'selected-blocks.png'}   which blocks were read for the answer")
    print(f"                  {out / 'time-per-token.png'}   time per token against context length")


def _peak_bytes() -> int:
    """The most memory this process has held, bytes."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
