"""Our server under offered load: requests arrive at random times, with prompts and answers of mixed length.

Offered load is a fraction of the saturated throughput: the requests per second of the same mix when all come at once.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.compare import require
from bench.harness import RESULTS, WORK, Row, Session, progress
from bench.peers.random_model import Geometry, random_weights
from bench.serving import Ask, Heard, Ours, ask_all, our_server, random_ids, warm_up, write_served

NAME = "load"
TITLE = "our server under offered load: time to first token and per token"
FRACTIONS = (0.25, 0.5, 0.75, 0.9, 1.1)
SECONDS = 45.0  # of arrivals per rate
STREAMS = 16  # that run at once: the server's default; more wait
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Mix:
    """Prompt lengths log-uniform and answer lengths uniform between these bounds, in tokens."""

    prompt: tuple[int, int]
    answer: tuple[int, int]
    vocab: int

    def ask(self, draw: random.Random) -> Ask:
        low, high = self.prompt
        n = round(low * (high / low) ** draw.random())
        return Ask(random_ids(n, self.vocab, draw.randrange(1 << 40)), draw.randint(*self.answer))


@dataclass(frozen=True)
class Served:
    """What was heard at one rate; `fraction` of the saturated throughput, `rate` in requests/s."""

    fraction: float
    rate: float
    asks: Sequence[Ask]
    answers: Sequence[Heard]

    @property
    def seconds(self) -> float:
        """From the first request to the last token."""
        return max(a.times[-1] for a in self.answers) - min(a.sent for a in self.answers)

    @property
    def generated(self) -> int:
        return sum(a.answer for a in self.asks)

    @property
    def read(self) -> int:
        return sum(len(a.prompt) for a in self.asks)

    def latencies(self) -> dict[str, list[float]]:
        """Milliseconds of each request."""
        return {"TTFT": [1e3 * a.ttft for a in self.answers], "TPOT": [1e3 * a.tpot for a in self.answers]}


def run(session: Session) -> None:
    geometry = Geometry()
    WORK.mkdir(parents=True, exist_ok=True)
    checkpoint = write_served(geometry, random_weights(geometry))
    prompts, answers = session.pick(((256, 4096), (32, 128)), ((32, 256), (4, 16)))
    mix = Mix(prompts, answers, geometry.vocab)
    room = mix.prompt[1] + mix.answer[1] + 1
    with our_server(checkpoint, streams=STREAMS, stream_tokens=room) as ours:
        warm_up(ours, geometry.vocab)
        saturated = saturation(session, ours, mix)
        served = [offer(session, ours, mix, fraction, saturated) for fraction in session.pick(FRACTIONS, (0.5, 1.1))]
    for one in served:
        add_rows(session, mix, one, saturated)
    session.note("longsight serve in bf16 with --no-prefix-cache and --no-speculation, 16 running at most, over HTTP")
    session.note("Poisson arrivals, seeded; p99 of fewer than 100 requests lies next to the worst of them")
    path = picture(served, (WORK / "quick" if session.quick else RESULTS) / f"{NAME}.png")
    session.note(f"picture: {path.name}" if path else "no picture: matplotlib is not installed")


def saturation(session: Session, ours: Ours, mix: Mix) -> float:
    """Requests/s when all are there at once; some of the answers are first compared with those given alone."""
    draw = random.Random(1)
    asks = [mix.ask(draw) for _ in range(session.pick(64, 8))]
    alone = [ask_all(ours, [ask])[0].ids for ask in asks[:4]]
    session.settle()
    with progress(f"{NAME}: {len(asks)} requests at once"):
        answers = ask_all(ours, asks)
    wrong = sum(a != b for heard, ids in zip(answers, alone, strict=False) for a, b in zip(heard.ids, ids, strict=True))
    session.passed(require(f"tokens of {len(alone)} answers under load that differ from those alone", wrong, 0))
    return len(asks) / Served(1.0, 0.0, asks, answers).seconds


def offer(session: Session, ours: Ours, mix: Mix, fraction: float, saturated: float) -> Served:
    """Arrivals at `fraction` of the saturated rate, all answered."""
    rate = fraction * saturated
    asks = arrivals(mix, rate, session.pick(SECONDS, 2.0), seed=round(1000 * fraction))
    session.settle()
    with progress(f"{NAME}: {len(asks)} requests at {rate:.2f} per second"):
        return Served(fraction, rate, asks, ask_all(ours, asks))


def arrivals(mix: Mix, rate: float, seconds: float, seed: int) -> list[Ask]:
    """A Poisson process of `rate` per second: the first request at 0, the rest while `seconds` last."""
    draw = random.Random(seed)
    asks, now = [], 0.0
    while now < seconds:
        asks.append(replace(mix.ask(draw), delay=now))
        now += draw.expovariate(rate)
    return asks


def add_rows(session: Session, mix: Mix, served: Served, saturated: float) -> None:
    """Throughput, then every percentile of both latencies."""
    shape = {
        "load": f"{served.fraction:g}",
        "prompts": f"{mix.prompt[0]}-{mix.prompt[1]}",
        "answers": f"{mix.answer[0]}-{mix.answer[1]}",
    }
    detail = {
        "requests": len(served.asks),
        "offered_per_s": served.rate,
        "saturated_per_s": saturated,
        "seconds": served.seconds,
        "prompt_tokens_per_s": served.read / served.seconds,
        "generated_tokens_per_s": served.generated / served.seconds,
    }
    both = (served.read + served.generated) / served.seconds
    session.add(Row("tokens read and generated", both, "tok/s", shape, detail=detail))
    for what, values in served.latencies().items():
        for percent, value in percentiles(values).items():
            session.add(Row(f"{what} p{percent}", value, "ms", shape, detail={"requests": len(values)}))


def percentiles(values: Sequence[float]) -> Mapping[int, float]:
    return {percent: float(np.percentile(values, percent)) for percent in PERCENTILES}


def picture(served: Sequence[Served], path: Path) -> Path | None:
    """TTFT and TPOT percentiles against offered load as a PNG; None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, what in zip(axes, ("TTFT", "TPOT"), strict=True):
        for percent in PERCENTILES:
            points = [percentiles(one.latencies()[what])[percent] for one in served]
            axis.plot([one.fraction for one in served], points, marker="o", label=f"p{percent}")
        axis.set(title=what, xlabel="offered load, of saturated throughput", ylabel="ms", yscale="log")
        for each in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            each(ticker.StrMethodFormatter("{x:g}"))
        axis.grid(alpha=0.3)
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
