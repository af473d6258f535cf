"""Our server against llama.cpp's, over loopback HTTP, with the same random weights: 1, 4 and 16 streams.

Each side alone on the machine while it is timed. Prompts are distinct random token ids, so nothing can be shared;
neither side keeps prompts or guesses tokens. The client runs in this process and only notes when bytes arrive: it reads
them after the last stream has ended.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import httpx
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from bench import llama_cpp as whole_model
from bench.compare import require
from bench.harness import WORK, BenchError, Row, Session, Target, progress
from bench.peers.gguf_model import write_gguf
from bench.peers.llama_cpp import llama_cpp
from bench.peers.llama_cpp import llama_server as llama_server_program
from bench.peers.llama_server import BATCH, SLOTS, LlamaServer, llama_server, server_process
from bench.peers.random_model import Geometry, random_weights, write_checkpoint
from bench.shapes import tokens
from longsight.model.config import ModelConfig

NAME = "serving"
TITLE = "our server against llama.cpp's over HTTP, same random weights, 1 to 16 streams"
FASTER, LONG_PROMPT = Target(1.0), Target(5.0)
STORAGE, UBATCH = "bf16", 128  # llama.cpp's best of f16, bf16 and 128, 512, 2048: bench/results/llama_cpp.json
ANSWER = 64  # tokens that all streams generate together
CHUNK = whole_model.CHUNK  # prompt tokens per step on both sides, by default
REPEATS = 3  # of short prompts, which take a second or less on our side
WINDOW = 150.0  # s that llama.cpp is given where it would read for a quarter of an hour or more
QUICK_WINDOW = 1.0  # s: cuts into the reading at quick sizes too
NEAR_TIE = 0.1  # nats; logits have a deviation of 1.3, and rounding moves them by 1 to 2% of that
OTHER = 0.25  # of our tokens may lie deeper: bf16 flips an expert in about one row of ten. Of unlike models, all would


@dataclass(frozen=True)
class Ask:
    """One request: sent `delay` seconds after the start."""

    prompt: Sequence[int]
    answer: int
    delay: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Heard:
    """What came back for one request: token ids with their times, prompt tokens read by a time; the clock's seconds."""

    sent: float
    ids: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    read: list[tuple[float, int]] = field(default_factory=list)
    evaluated: int | None = None  # prompt tokens that were not in a cache, as the server says at the end

    @property
    def ttft(self) -> float:
        """Seconds from sending the request to its first token."""
        return self.times[0] - self.sent

    @property
    def tpot(self) -> float:
        """Seconds per token after the first."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)


class Side(Protocol):
    """How one of the servers is asked and understood."""

    @property
    def url(self) -> str: ...

    def request(self, ask: Ask) -> tuple[str, dict[str, Any]]:
        """Path and body of a greedy streaming request that no end-of-sequence ends."""

    def hear(self, frame: dict[str, Any], now: float, heard: Heard) -> None: ...


@dataclass(frozen=True)
class Ours:
    url: str

    def request(self, ask: Ask) -> tuple[str, dict[str, Any]]:
        body = {"model": "m", "prompt": list(ask.prompt), "max_tokens": ask.answer, "temperature": 0, **ask.options}
        return "/v1/completions", {
            **body,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def hear(self, frame: dict[str, Any], now: float, heard: Heard) -> None:
        for choice in frame["choices"]:
            add_tokens(heard, [int(i) for i in re.findall(r"w(\d+)", choice["text"])], now)
        usage = frame.get("usage")
        if usage:
            heard.evaluated = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]


@dataclass(frozen=True)
class Llama:
    url: str

    def request(self, ask: Ask) -> tuple[str, dict[str, Any]]:
        body = {"prompt": list(ask.prompt), "n_predict": ask.answer, "temperature": 0, "samplers": ["top_k"]}
        body |= {"top_k": 1, "ignore_eos": True, "stream": True, "return_tokens": True, "cache_prompt": False}
        return "/completion", {**body, **ask.options}

    def hear(self, frame: dict[str, Any], now: float, heard: Heard) -> None:
        if "prompt_progress" in frame:  # its token is a placeholder
            heard.read.append((now, frame["prompt_progress"]["processed"]))
        elif frame["stop"]:
            heard.evaluated = frame["timings"]["prompt_n"]
        else:
            add_tokens(heard, frame["tokens"], now)


def add_tokens(heard: Heard, ids: list[int], now: float) -> None:
    heard.ids += ids
    heard.times += [now] * len(ids)


# The client


def ask_all(side: Side, asks: Sequence[Ask], window: float | None = None) -> list[Heard]:
    """Send all requests at their times and collect the answers; after `window` seconds, leave the unfinished ones.

    Raises BenchError for a refusal, an error in a stream, or an answer of another length than asked for.
    """
    arrivals = asyncio.run(_ask_all(side, asks, window))
    answers = [understand(side, sent, chunks) for sent, chunks in arrivals]
    if window is None:
        for ask, heard in zip(asks, answers, strict=True):
            if len(heard.ids) != ask.answer:
                raise BenchError(f"{side.url} answered with {len(heard.ids)} tokens, not the {ask.answer} asked for")
    return answers


Arrivals = tuple[float, list[tuple[float, bytes]]]  # when the request was sent; when each piece of its answer came


async def _ask_all(side: Side, asks: Sequence[Ask], window: float | None) -> list[Arrivals]:
    prepared = []
    for ask in asks:
        path, body = side.request(ask)
        prepared.append((ask.delay, path, json.dumps(body).encode()))
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=side.url, timeout=None, limits=limits) as client:
        start = time.perf_counter()
        arrivals: list[Arrivals] = [(start + delay, []) for delay, _, _ in prepared]
        exchanges = (
            _exchange(client, path, body, arrived) for (_, path, body), arrived in zip(prepared, arrivals, strict=True)
        )
        try:
            async with asyncio.timeout(window):
                await asyncio.gather(*exchanges)
        except TimeoutError:
            pass
    return arrivals


async def _exchange(client: httpx.AsyncClient, path: str, body: bytes, arrived: Arrivals) -> None:
    sent, chunks = arrived
    await asyncio.sleep(sent - time.perf_counter())
    async with client.stream("POST", path, content=body, headers={"content-type": "application/json"}) as response:
        if response.status_code != 200:
            raise BenchError(f"{client.base_url} answered {response.status_code}: {(await response.aread())[:400]!r}")
        async for chunk in response.aiter_raw():
            chunks.append((time.perf_counter(), chunk))


def understand(side: Side, sent: float, chunks: Sequence[tuple[float, bytes]]) -> Heard:
    """Server-sent events -> what they say; an event has the time at which its last byte came."""
    heard, rest = Heard(sent), b""
    for now, chunk in chunks:
        *events, rest = (rest + chunk).split(b"\n\n")
        for event in events:
            kind, _, data = event.partition(b": ")
            if kind == b"error":
                raise BenchError(f"{side.url} broke off: {data[:400]!r}")
            if kind != b"data" or data == b"[DONE]":  # a comment keeps the connection alive
                continue
            frame = json.loads(data)
            if "error" in frame:
                raise BenchError(f"{side.url} broke off: {data[:400]!r}")
            side.hear(frame, now, heard)
    return heard


def prompt_rate(answers: Sequence[Heard], lengths: int) -> float:
    """Prompt tokens/s of all streams until the last one's first token; `lengths` is what they sum to."""
    return lengths / (max(a.times[0] for a in answers) - min(a.sent for a in answers))


def windowed_rate(answers: Sequence[Heard]) -> tuple[float, int, float]:
    """(prompt tokens/s until the last progress that was heard, prompt tokens read by then, seconds until then)."""
    last = max((at for a in answers for at, read in a.read if read), default=None)
    if last is None:
        raise BenchError("llama-server read nothing in its window")
    read = sum(max((read for _, read in a.read), default=0) for a in answers)
    seconds = last - min(a.sent for a in answers)
    return read / seconds, read, seconds


def decode_rate(answers: Sequence[Heard]) -> float:
    """Generated tokens/s of all streams while every one of them generates."""
    first, last = max(a.times[0] for a in answers), min(a.times[-1] for a in answers)
    if last <= first:
        raise BenchError("at no moment did all streams generate: answers are too short for so many prompts")
    return sum(first < at <= last for a in answers for at in a.times) / (last - first)


# The servers


@contextmanager
def our_server(checkpoint: Path, *, streams: int, stream_tokens: int) -> Iterator[Ours]:
    """`longsight serve` with room for `streams` requests of `stream_tokens` each; no prefix cache, no guessing."""
    config = ModelConfig.from_file(checkpoint)
    pages = streams * (-(-stream_tokens // config.block_size) + 1)
    command = [sys.executable, "-m", "longsight.cli.main", "serve", str(checkpoint), "--model-id", "m", "--port", "0"]
    command += ["--dtype", "bfloat16", "--threads", str(torch.get_num_threads()), "--max-running", str(streams)]
    command += ["--max-model-len", str(stream_tokens), "--no-prefix-cache", "--no-speculation"]
    command += ["--kv-memory", str(pages * config.page_bytes(torch.bfloat16, screened=True))]

    def announced(log: str) -> str | None:
        found = re.search(r" on (http://\S+)/v1\n", log)
        return found[1] if found else None

    with server_process(command, WORK / "longsight-serve.log", announced) as url:
        yield Ours(url)


def write_served(geometry: Geometry, weights: dict[str, torch.Tensor]) -> Path:
    """The checkpoint with a tokenizer that spells token 17 as "w17"; -> its directory."""
    folder = write_checkpoint(WORK / "served-m3", geometry, weights)
    spelled = Tokenizer(models.WordLevel({f"w{i}": i for i in range(geometry.vocab)}, unk_token="w0"))
    spelled.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    spelled.save(str(folder / "tokenizer.json"))
    return folder


# The bench


@dataclass(frozen=True)
class Point:
    """`streams` at once with prompts of `n` tokens; windowed: llama.cpp's reading is cut off."""

    streams: int
    n: int
    repeats: int = 1
    windowed: bool = False

    @property
    def answer(self) -> int:
        """Tokens to ask of each stream: the first to be read generates while the rest are, at most one per chunk."""
        return ANSWER + 2 * -(-self.streams * self.n // CHUNK)

    @property
    def stream_tokens(self) -> int:
        return self.n + self.answer + 1

    def asks(self, vocab: int, repeat: int = 0) -> list[Ask]:
        """The same for both sides; no two streams or repeats share a prompt."""
        return [Ask(self.prompt(vocab, self.streams * repeat + i), self.answer) for i in range(self.streams)]

    def prompt(self, vocab: int, index: int) -> list[int]:
        return random_ids(self.n, vocab, seed=1000 * self.n + index)

    def measure(self, side: Side, vocab: int) -> Rates:
        """The best of the repeats, of either rate by itself."""
        rates = [self.rates(ask_all(side, self.asks(vocab, i))) for i in range(self.repeats)]
        decode = max(r.decode for r in rates if r.decode is not None)
        return Rates(max(r.prompt for r in rates), decode)

    def rates(self, answers: Sequence[Heard]) -> Rates:
        reused = sum(self.n - (a.evaluated or 0) for a in answers)
        if reused:
            raise BenchError(f"{reused} prompt tokens came from a cache: reading them was not measured")
        return Rates(prompt_rate(answers, self.streams * self.n), decode_rate(answers))


@dataclass(frozen=True)
class Rates:
    """Tokens/s; decode is None where it could not be measured."""

    prompt: float
    decode: float | None
    detail: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Peer:
    """llama-server, the file it serves, and how."""

    program: Path
    model: Path
    threads: int
    batch: int

    @contextmanager
    def serve(self, slots: int, slot_tokens: int) -> Iterator[tuple[Llama, LlamaServer]]:
        with llama_server(
            self.program,
            self.model,
            slots=slots,
            slot_tokens=slot_tokens,
            threads=self.threads,
            batch=self.batch,
            ubatch=UBATCH,
        ) as server:
            yield Llama(server.url), server


def run(session: Session) -> None:
    geometry = Geometry()
    weights = random_weights(geometry)
    WORK.mkdir(parents=True, exist_ok=True)
    checkpoint = write_served(geometry, weights)
    file = write_gguf(WORK / f"served-m3-{STORAGE}.gguf", geometry, weights, STORAGE, vocabulary=True)
    programs = llama_cpp()
    peer = Peer(llama_server_program(), file, torch.get_num_threads(), session.pick(BATCH, UBATCH))
    whole_model.compare(session, programs, checkpoint, {STORAGE: file}, geometry.vocab)
    compare_answers(session, checkpoint, peer, geometry.vocab)

    long = session.pick(1 << 14, 512)
    for n in (session.pick(1 << 10, 256), long):
        for streams in session.pick((1, 4, 16), (1, 2)):
            repeats = 1 if n == long else session.pick(REPEATS, 2)
            point = Point(streams, n, repeats, windowed=n == long and streams > 1)
            mine = measure_ours(session, checkpoint, point, geometry.vocab)
            theirs = measure_llama(session, peer, point, geometry.vocab)
            add_rows(session, geometry, point, mine, theirs)
    session.note(
        f"llama.cpp: {programs.origin}, {STORAGE}, micro-batch {UBATCH}, flash attention on, KV cache f16, "
        "one of its own for each slot, no prompt cache; sampling by top-k 1"
    )
    session.note("ours: longsight serve in bf16 with --no-prefix-cache and --no-speculation, else its defaults")
    session.note(
        "prompt: all prompt tokens over the time until the last stream's first token; "
        f"decode: while all streams generate; short prompts best of {session.pick(REPEATS, 2)}, long ones once"
    )


def compare_answers(session: Session, checkpoint: Path, peer: Peer, vocab: int) -> None:
    """Our greedy answer against llama.cpp's likeliest token after the prompt and each beginning of that answer.

    Not answer against answer: one near tie that flips changes all tokens after it.
    """
    prompt, count = random_ids(session.pick(4096, 300), vocab, seed=8), 32
    room = len(prompt) + count + 1
    with progress(f"{NAME}: comparing answers"):
        with our_server(checkpoint, streams=1, stream_tokens=room) as ours:
            mine = ask_all(ours, [Ask(prompt, count)])[0].ids
        with peer.serve(1, room) as (_, server):
            theirs = [server.likeliest([*prompt, *mine[:i]]) for i in range(count)]
    gaps = [max(found.values()) - found.get(token, -math.inf) for token, found in zip(mine, theirs, strict=True)]
    other = sum(gap > NEAR_TIE for gap in gaps) / count
    what = (
        f"share of {count} greedy tokens after {len(prompt)} that llama-server puts {NEAR_TIE} nats below its likeliest"
    )
    session.passed(require(what, other, OTHER))


def measure_ours(session: Session, checkpoint: Path, point: Point, vocab: int) -> Rates:
    with our_server(checkpoint, streams=point.streams, stream_tokens=point.stream_tokens) as ours:
        warm_up(ours, vocab)
        session.settle()
        with progress(f"{NAME}: ours, {point.streams} x {point.n}"):
            return point.measure(ours, vocab)


def measure_llama(session: Session, peer: Peer, point: Point, vocab: int) -> Rates:
    with peer.serve(point.streams, point.stream_tokens) as (llama, server):
        warm_up(llama, vocab)
        session.settle()
        with progress(f"{NAME}: llama.cpp, {point.streams} x {point.n}{', windowed' if point.windowed else ''}"):
            if not point.windowed:
                return point.measure(llama, vocab)
            asks = [
                replace(ask, options={"return_progress": True, "id_slot": i}) for i, ask in enumerate(point.asks(vocab))
            ]
            answers = ask_all(llama, asks, session.pick(WINDOW, QUICK_WINDOW))
            rate, read, seconds = windowed_rate(answers)
        detail: dict[str, object] = {
            "llama_read_tokens": read,
            "llama_read_s": seconds,
            "window": "favours llama.cpp: tokens early in a prompt are cheaper, and few late ones were read",
        }
        try:
            decode = restored_decode(session, llama, server, point, vocab)
        except BenchError as error:
            session.note(f"no decode of llama.cpp at {point.streams} x {point.n}: {error}")
            return Rates(rate, None, detail)
    return Rates(rate, decode, {**detail, "llama_decode": "all slots filled from one prompt that was read once"})


def warm_up(side: Side, vocab: int) -> None:
    """A short request first: the first one on a fresh process pays for pages and tables that no later one does."""
    ask_all(side, [Ask(random_ids(64, vocab, seed=7), 8)])


def restored_decode(session: Session, llama: Llama, server: LlamaServer, point: Point, vocab: int) -> float:
    """Tokens/s of all slots after the same prompt, each with a last token of its own. Slot 0 reads the prompt and the
    others are filled from it; on the same server, since a slot's file fits only as many slots as wrote it.
    """
    prompt, name = point.prompt(vocab, 0), f"prompt-{point.n}"

    def ask(slot: int, last: int, count: int) -> Ask:
        return Ask([*prompt, last], count, options={"cache_prompt": True, "id_slot": slot})

    with progress(f"{NAME}: llama.cpp, one prompt of {point.n} into {point.streams} slots"):
        first = ask_all(llama, [ask(0, 300, 8)])[0].ids
        try:
            server.save(0, name)
            for slot in range(1, point.streams):
                server.restore(slot, name)
        finally:
            (SLOTS / name).unlink(missing_ok=True)
        if ask_all(llama, [ask(1, 300, 8)])[0].ids != first:
            raise BenchError("a slot filled from a file answers differently than the slot that was saved")
    session.settle()
    with progress(f"{NAME}: llama.cpp, {point.streams} x {point.n}, decode"):
        answers = ask_all(llama, [ask(slot, 301 + slot, ANSWER) for slot in range(point.streams)])
    read = max(a.evaluated or 0 for a in answers)
    if read > 1:
        raise BenchError(f"{read} tokens of a prompt that a slot holds were read anew")
    return decode_rate(answers)


def add_rows(session: Session, geometry: Geometry, point: Point, mine: Rates, theirs: Rates) -> None:
    shape = {
        "streams": point.streams,
        "prompt": tokens(point.n),
        "hidden": geometry.hidden,
        "layers": geometry.layers,
        "heads": f"{geometry.heads}/{geometry.kv_heads}",
    }
    detail = {"storage": STORAGE, "ubatch": UBATCH, "repeats": point.repeats, **theirs.detail}
    target = LONG_PROMPT if point.n == 1 << 14 else FASTER
    prompt = {**detail, "ours_tokens_per_s": mine.prompt, "llama_tokens_per_s": theirs.prompt}
    session.add(Row("prompt over HTTP, over llama.cpp", mine.prompt / theirs.prompt, "x", shape, target, prompt))
    if mine.decode is not None and theirs.decode is not None:
        decode = {**detail, "ours_tokens_per_s": mine.decode, "llama_tokens_per_s": theirs.decode}
        session.add(Row("decode over HTTP, over llama.cpp", mine.decode / theirs.decode, "x", shape, FASTER, decode))


def random_ids(n: int, vocab: int, seed: int) -> list[int]:
    """Ids that stand for words on both sides: none of llama.cpp's special tokens."""
    return torch.randint(300, vocab, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
