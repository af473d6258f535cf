"""`longsight bench URL`: how fast an OpenAI-compatible server answers, by load and by prompt length."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from typing import Any

from longsight.cli.numbers import count, http_url, positive, rate, seconds, seed
from longsight.cli.paths import OutputFile

EXAMPLES = """\
examples:
  longsight bench http://127.0.0.1:8000                    # one and four clients at a time, 1,024 tokens each
  longsight bench http://127.0.0.1:8000 --concurrency 1,2,4,8 --input-len 1024,8192 --plot load.png
  longsight bench https://HOST/v1 --api-key KEY --request-rate 0.5,1,2 --num-prompts 100 --output load.json

what is measured, from streamed chat completions:
TTFT   time to first token     from when the request was due to the first piece of text
TPOT   time per output token   (end - first token) / (output tokens - 1)
ITL    inter-token latency     between two pieces of the stream, which may hold several tokens
E2EL   end-to-end latency      from when the request was due to the end of its answer

--concurrency N keeps N requests under way: each new one waits for another to end, so a slow server is asked less.
--request-rate R sends requests at random moments (a Poisson process of R per second) whether or not the server keeps
up, and measures each from the moment it was due: what waits in a queue counts. Use it to find what a server can take.

Prompts are random words made from --seed. Each begins differently, so that no prefix cache helps; --shared-prefix gives
them a common beginning. If the server has /tokenize (vLLM and Longsight do) they have exactly --input-len tokens with
the chat template; else about as many, and the server's own usage says how many.
"""
MAX_PROMPTS = 100_000


def numbers(kind: Any, most: int = 32) -> Any:
    """The type of a list with commas between, of up to `most` items."""

    def parse(text: str) -> list[Any]:
        items = [kind(item.strip()) for item in text.split(",")]
        if len(items) > most:
            raise argparse.ArgumentTypeError(f"{text!r} has {len(items)} values; give up to {most}")
        return items

    return parse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="measure the speed of any OpenAI-compatible server",
        description="Measure how fast an OpenAI-compatible server answers, at each load and prompt length.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", type=http_url, metavar="URL", help="the server, with or without /v1 at the end")
    parser.add_argument("--model", metavar="NAME", help="default: the first that the server lists")
    parser.add_argument(
        "--api-key",
        default=os.environ.get("OPENAI_API_KEY") or os.environ.get("LONGSIGHT_API_KEY"),
        metavar="KEY",
        help="default: OPENAI_API_KEY or LONGSIGHT_API_KEY; better there, as others see arguments",
    )
    load = parser.add_mutually_exclusive_group()
    load.add_argument(
        "--concurrency",
        type=numbers(positive),
        default=[1, 4],
        metavar="N,...",
        help="requests under way at once, one run for each (default 1,4)",
    )
    load.add_argument(
        "--request-rate", type=numbers(rate), metavar="R,...", help="requests per second instead, one run for each"
    )
    parser.add_argument(
        "--input-len", type=numbers(positive), default=[1024], metavar="N,...", help="tokens of a prompt (default 1024)"
    )
    parser.add_argument(
        "--output-len", type=positive, default=128, metavar="N", help="tokens of an answer (default 128)"
    )
    parser.add_argument(
        "--num-prompts", type=positive, default=32, metavar="N", help="requests of each run (default 32)"
    )
    parser.add_argument(
        "--num-warmups", type=count, default=1, metavar="N", help="requests before each run, not counted (default 1)"
    )
    parser.add_argument(
        "--shared-prefix", type=count, default=0, metavar="N", help="tokens that all prompts begin with (default 0)"
    )
    parser.add_argument(
        "--no-ignore-eos",
        action="store_true",
        help="let answers end early; else `ignore_eos` is sent, which servers that do not know it may refuse",
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of prompts and arrival times (default 0)")
    parser.add_argument(
        "--timeout", type=seconds, default=600.0, metavar="SECONDS", help="of one request (default 600)"
    )
    parser.add_argument("--output", type=OutputFile(), metavar="FILE", help="write the results as JSON")
    parser.add_argument("--plot", type=OutputFile("a .png, .svg or .pdf file"), metavar="FILE", help="draw them")


def run(args: argparse.Namespace) -> int:
    from longsight.cli.bench_run import Bench, BenchError, Plan
    from longsight.cli.progress import ProgressBar

    if args.num_prompts > MAX_PROMPTS:
        raise BenchError(f"--num-prompts is {args.num_prompts:,}; a run may have {MAX_PROMPTS:,}")
    if args.plot and args.plot.suffix not in (".png", ".svg", ".pdf"):
        raise BenchError(f"--plot is {str(args.plot)!r}; its name must end in .png, .svg or .pdf")
    if args.plot:
        import matplotlib  # noqa: F401  # before anything is measured
    from longsight.cli import bench_report as report

    plan = Plan(
        url=args.url,
        model=args.model,
        api_key=args.api_key,
        kind="request_rate" if args.request_rate else "concurrency",
        loads=args.request_rate or args.concurrency,
        input_lens=args.input_len,
        output_len=args.output_len,
        num_prompts=args.num_prompts,
        num_warmups=args.num_warmups,
        shared_prefix=args.shared_prefix,
        ignore_eos=not args.no_ignore_eos,
        seed=args.seed,
        timeout=args.timeout,
    )
    bench, interrupted, failure = Bench(plan), False, None
    try:
        with ProgressBar("bench") as bar:
            asyncio.run(bench.run(bar.name_and_update))
    except KeyboardInterrupt:
        interrupted = True
    except BenchError as error:
        failure = error  # told after what was measured before it
    if bench.runs:
        report.show(bench)
        if args.output:
            report.write_json(bench, args.output, interrupted=interrupted)
        if args.plot:
            from longsight.cli.bench_plot import plot

            plot([report.summary(level) for level in bench.runs], args.plot)
    if failure is not None:
        raise failure
    if interrupted:
        print("longsight: interrupted; the above is what was measured until then", file=sys.stderr)
        return 130
    return 0 if any(sample.ok for level in bench.runs for sample in level.samples) else 1
