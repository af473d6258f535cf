"""The HTTP side alone: a thousand silent streams stay open while small requests come at a steady rate."""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bench.compare import require
from bench.harness import Row, Session, Target, progress
from bench.peers.stub_server import ANSWER, MODEL

NAME = "http_load"
TITLE = "HTTP server over a stub engine: idle streams and small requests"
STREAMS, RATE, SECONDS, TOKENS = 1000, 200.0, 20.0, 16
HELD = Target(0.0, at_least=False)
LATE = Target(100.0, at_least=False)  # ms that an answer may take beyond its tokens' own pace, 99 of 100 times


@dataclass
class Answer:
    """Seconds from when the request was due; text None if it failed."""

    due: float
    first: float = 0.0
    last: float = 0.0
    text: str | None = None


def run(session: Session) -> None:
    streams, seconds = session.pick((STREAMS, SECONDS), (20, 1.0))
    with server() as (port, pid):
        session.settle()
        with progress(f"{NAME}: {streams} idle streams, {RATE:g} requests/s"):
            before = cpu_seconds(pid)
            answers, alive = asyncio.run(offer(port, streams, seconds))
            busy = (cpu_seconds(pid) - before) / seconds
    expected = (ANSWER * TOKENS)[:TOKENS]
    session.passed(require("answers that are not what the engine said", sum(a.text != expected for a in answers), 0))
    where = {"streams": streams, "rate": f"{RATE:g}/s", "seconds": seconds}
    session.add(Row("idle streams lost", float(streams - alive), "", where, HELD))
    session.add(Row("small requests lost", float(sum(a.text is None for a in answers)), "", where, HELD))
    late = sorted(1e3 * (a.last - TOKENS * 0.005) for a in answers if a.text is not None)
    first = sorted(1e3 * (a.first - 0.005) for a in answers if a.text is not None)
    detail = {"p50_ms": statistics.median(late), "p90_ms": late[int(0.9 * len(late))], "max_ms": late[-1]}
    session.add(Row("answer beyond its tokens' pace, p99", late[int(0.99 * len(late))], "ms", where, LATE, detail))
    session.add(Row("first token beyond its pace, p99", first[int(0.99 * len(first))], "ms", where))
    session.add(Row("cores that the server used", busy, "", where))


@contextmanager
def server() -> Iterator[tuple[int, int]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.peers.stub_server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield int(process.stdout.readline()), process.pid
    finally:
        process.stdin.close()
        process.wait(10)


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def offer(port: int, streams: int, seconds: float) -> tuple[list[Answer], int]:
    """The answers to the small requests, and how many idle streams were still open at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 2 * streams + 1024), hard), hard))
    # Opened a few at a time: the question is whether they are held.
    idle = [await open_stream(port) for _ in range(streams)]
    begin = time.perf_counter()
    tasks = []
    for i in range(int(seconds * RATE)):
        due = begin + i / RATE
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        tasks.append(asyncio.create_task(small(port, due)))
    answers = await asyncio.gather(*tasks)
    alive = 0
    for reader, writer in idle:
        alive += not reader.at_eof() and not writer.is_closing()
        writer.close()
    return list(answers), alive


def body(content: str) -> bytes:
    fields = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": TOKENS, "stream": True}
    text = json.dumps(fields).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(text)}\r\nconnection: close\r\n\r\n"
    return head.encode() + text


async def open_stream(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(body("idle, please"))
    status = await reader.readline()
    if b" 200 " not in status:
        raise OSError(f"an idle stream was refused: {status!r}")
    return reader, writer


async def small(port: int, due: float) -> Answer:
    answer = Answer(due)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(body("quick"))
        pieces: list[str] = []
        finished = False
        async for line in reader:
            if not line.startswith(b"data: {"):
                finished = finished or line.startswith(b"data: [DONE]")
                continue
            for choice in json.loads(line[6:])["choices"]:
                text = choice["delta"].get("content")
                if text:
                    answer.first = answer.first or time.perf_counter() - due
                    pieces.append(text)
        answer.last = time.perf_counter() - due
        answer.text = "".join(pieces) if finished else None
        writer.close()
    except OSError:
        answer.text = None
    return answer
