"""`longsight bench`: figures computed from recorded times, prompts of exact length, loads as planned, honest errors."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse

from competent import competent_server
from live_server import LiveServer, live_server
from longsight.cli import bench as command
from longsight.cli.bench_prompts import PromptMaker, arrival_times
from longsight.cli.bench_report import statistics, summary
from longsight.cli.bench_run import Bench, BenchError, Plan, Run
from longsight.cli.bench_sample import Sample, StreamError, StreamReader
from longsight.cli.main import main
from longsight.server.auth import StaticKey
from scripted_server import delta, ended, scripted_server


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def text(content: str) -> bytes:
    return event(delta(content=content))


def read(pieces: Sequence[tuple[float, bytes]], due: float = 0.0) -> Sample:
    reader = StreamReader(sample := Sample(due, due))
    for at, data in pieces:
        reader.feed(data, at)
    reader.finish()
    return sample


END = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
DONE = b"data: [DONE]\n\n"


def usage(completion: int) -> bytes:
    used = {"prompt_tokens": 100, "completion_tokens": completion, "prompt_tokens_details": {"cached_tokens": 7}}
    return event({"choices": [], "usage": used})


def test_times_of_a_scripted_stream() -> None:
    """Due at 10, four pieces at 12.0, 12.5, 13.0 and 15.0 with nine tokens by the server's count, the end at 16."""
    sample = read(
        [
            (11.0, event(delta(role="assistant", content=""))),  # no text yet
            (12.0, text("a")),
            (12.5, text("b")[:9]),
            (13.0, text("b")[9:] + b": keep-alive\n\n"),
            (15.0, event(delta(reasoning_content="c")) + event(delta(tool_calls=[{"index": 0}]))),
            (16.0, END),
            (17.0, usage(9)),
            (18.0, DONE),
        ],
        due=10.0,
    )
    assert sample.ok
    assert sample.arrivals == [12.0, 13.0, 15.0, 15.0]
    assert (sample.ttft, sample.latency) == (2.0, 6.0)
    assert sample.tpot == (16.0 - 12.0) / (9 - 1)
    assert sample.gaps == [1.0, 2.0, 0.0]
    assert (sample.prompt_tokens, sample.output_tokens, sample.cached_tokens) == (100, 9, 7)


def test_without_usage_pieces_are_counted() -> None:
    sample = read([(1.0, text("a")), (2.0, text("b")), (4.0, text("c") + END + DONE)])
    assert (sample.output_tokens, sample.usage_tokens, sample.tpot) == (3, None, 1.5)
    assert read([(1.0, text("a") + END + DONE)]).tpot is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (text("a"), "broke off"),
        (text("a") + END, "broke off"),
        (DONE, "broke off"),
        (END + DONE, "no text"),
        (event({"error": {"message": "out of pages"}}), "out of pages"),
        (b"data: nothing\n\n", "not JSON"),
        (b"data: 7\n\n", "not an object"),
    ],
)
def test_streams_that_are_no_answers(data: bytes, words: str) -> None:
    with pytest.raises(StreamError, match=words):
        read([(1.0, data)])


def test_statistics() -> None:
    assert statistics([0.001 * i for i in range(1, 101)]) == {
        "mean": 50.5,
        "median": 50.5,
        "p95": 95.05,
        "p99": 99.01,
    }
    assert statistics([]) is None


def test_failed_requests_count_as_such_and_in_nothing_else() -> None:
    good = [read([(due + 1, text("a")), (due + 3, text("b") + END + usage(3) + DONE)], due) for due in (0.0, 2.0)]
    bad = Sample(1.0, 1.0, arrivals=[1.1], error="HTTP 429", detail="HTTP 429: too fast")
    found = summary(Run("request_rate", 2, 100, 5, [*good, bad, Sample(4.0)]))
    assert (found["completed"], found["failed"], found["unfinished"]) == (2, 1, 2)
    assert found["errors"] == [{"count": 1, "error": "HTTP 429", "example": "HTTP 429: too fast"}]
    assert found["duration_s"] == 5.0
    assert (found["request_throughput"], found["input_throughput"], found["output_throughput"]) == (0.4, 40.0, 1.2)
    assert found["ttft_ms"]["p99"] == 1000.0
    assert found["tpot_ms"]["mean"] == 1000.0
    assert found["e2el_ms"]["median"] == 3000.0
    assert found["cached_tokens"] == 14


def test_arrivals_are_a_poisson_process() -> None:
    times = arrival_times(1, 5.0, 4000)
    gaps = [b - a for a, b in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert times[0] == 0
    assert mean == pytest.approx(0.2, rel=0.06)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert variance**0.5 == pytest.approx(mean, rel=0.08)  # as an exponential distribution has it
    assert times == arrival_times(1, 5.0, 4000) != arrival_times(2, 5.0, 4000)


async def letters(prompt: str) -> int:
    return len(prompt) + 30


async def halves(prompt: str) -> int:
    """Words of one or two tokens, as vocabularies have them."""
    return 12 + sum(1 + (len(word) > 5) for word in re.findall(r"\S+|[.!]", prompt))


@pytest.mark.parametrize("count", [letters, halves])
@pytest.mark.parametrize("length", [40, 41, 100, 257, 4096])
def test_prompts_have_exactly_the_tokens_that_were_asked_for(count: Any, length: int) -> None:
    maker = PromptMaker(3, count)
    made = [asyncio.run(maker.make(length, str(i))) for i in range(6)]
    assert {asyncio.run(count(prompt)) for prompt in made} == {length}
    assert made == [asyncio.run(PromptMaker(3, count).make(length, str(i))) for i in range(1)] + made[1:]


def test_prompts_begin_differently_unless_they_share_a_prefix() -> None:
    apart = [asyncio.run(PromptMaker(0).make(500, str(i))) for i in range(20)]
    assert len({prompt[:40] for prompt in apart}) == 20
    shared = [asyncio.run(PromptMaker(0, shared_prefix=200).make(500, str(i))) for i in range(20)]
    assert len({tuple(prompt.split()[:200]) for prompt in shared}) == 1
    assert len({tuple(prompt.split()[:210]) for prompt in shared}) == 20
    with pytest.raises(BenchError, match="template alone takes 30"):
        asyncio.run(PromptMaker(0, template_tokens=30).make(30, ""))


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with competent_server(max_running=8, max_queue=64) as server:
        yield server


def bench(url: str, **plan: Any) -> Bench:
    options = {"input_lens": [700], "output_len": 4, "num_prompts": 5, **plan}
    asyncio.run((found := Bench(Plan(url=url, **options))).run())
    return found


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_a_real_server(server: LiveServer, suffix: str) -> None:
    found = bench(server.url + suffix, loads=[2])
    assert (found.model, found.exact) == ("tiny", True)
    run = summary(found.runs[0])
    assert (run["completed"], run["failed"], run["output_tokens"]) == (5, 0, 20)
    assert run["input_tokens"] == {"min": 700, "max": 700}
    assert run["ttft_ms"]["median"] <= run["e2el_ms"]["median"]


def test_every_load_with_every_length(server: LiveServer) -> None:
    found = bench(server.url, kind="request_rate", loads=[50, 100], input_lens=[600, 650], num_prompts=3)
    assert [(run.input_len, run.load) for run in found.runs] == [(600, 50), (600, 100), (650, 50), (650, 100)]
    assert all(sample.ok and sample.sent >= sample.due for run in found.runs for sample in run.samples)


class Slow:
    """A server's chat that only one request at a time gets into, and how many are there at once."""

    def __init__(self) -> None:
        self.now = self.most = 0


def test_concurrency_is_kept_and_rates_are_not_held_back() -> None:
    """Measured on a clock of the test's own: an open loop sends what is due while others still wait."""
    slow = Slow()

    class Counting(Bench):
        async def _ask(self, body: bytes, sample: Sample) -> None:
            slow.now += 1
            slow.most = max(slow.most, slow.now)
            sample.sent = self._clock()
            await asyncio.sleep(0.05)
            slow.now -= 1

    async def run(kind: Any, load: float) -> int:
        slow.now = slow.most = 0
        found = Counting(Plan("http://127.0.0.1", kind=kind, num_prompts=12, num_warmups=0, input_lens=[20]))
        await found._measure(PromptMaker(0), 20, load, lambda *_: None)
        assert len(found.runs[0].samples) == 12
        return slow.most

    assert asyncio.run(run("concurrency", 3)) == 3
    assert asyncio.run(run("request_rate", 1e6)) == 12


def test_a_request_sent_late_is_measured_from_when_it_was_due() -> None:
    sample = Sample(due=1.0, sent=3.0, arrivals=[4.0], ended=5.0)
    assert (sample.ttft, sample.latency) == (3.0, 4.0)


def answers(number: int) -> list[Any]:
    return [[delta(content="a"), delta(content="b"), *ended()] for _ in range(number)]


def test_another_engine_without_tokenize_and_with_errors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Two requests find out how long words are; one that fails is counted and shown; the key is in no file."""
    with scripted_server() as script:
        script.answers = [
            *answers(3),  # two to learn from, one to warm up
            JSONResponse({"error": {"message": "the queue is full"}}, 429),
            [delta(content="a")],
            *answers(2),
        ]
        options = ["--num-prompts", "4", "--concurrency", "1", "--api-key", "sk-secret"]
        output = tmp_path / "found.json"
        assert main(["bench", script.url, *options, "--output", str(output)]) == 0
        assert {headers["authorization"] for _, headers in script.asked} == {"Bearer sk-secret"}
        assert script.asked[-1][0]["model"] == "scripted"
        assert script.asked[-1][0]["ignore_eos"] is True
    out = capsys.readouterr().out
    assert "2/4" in out
    assert "HTTP 429: the queue is full" in out
    assert "the stream broke off" in out
    assert "no /tokenize" in out
    written = output.read_text()
    assert "sk-secret" not in written
    (run,) = json.loads(written)["runs"]
    assert (run["completed"], run["failed"]) == (2, 2)
    assert len(run["requests"]) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["http://127.0.0.1:1"], "cannot be asked"),
        (["ftp://x"], "does not begin with http://"),
        (["http://127.0.0.1:1", "--concurrency", "1,0"], "'0' is not a positive whole number"),
        (["http://127.0.0.1:1", "--request-rate", "inf"], "'inf' is not a positive number"),
        (["http://127.0.0.1:1", "--request-rate", "1", "--concurrency", "1"], "not allowed with"),
        (["http://127.0.0.1:1", "--num-prompts", "1000000"], "a run may have 100,000"),
        (["http://127.0.0.1:1", "--plot", "load.txt"], "must end in .png"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: Any = main(["bench", *arguments])
    except SystemExit as error:
        code = error.code
    assert code in (1, 2)
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_a_server_with_keys_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "LONGSIGHT_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with live_server(authenticator=StaticKey("secret")) as server:
        assert main(["bench", server.url]) == 1
    err = capsys.readouterr().err
    assert "HTTP 401" in err
    assert "--api-key or OPENAI_API_KEY" in err


def test_ctrl_c_reports_what_was_measured(tmp_path: Path) -> None:
    with scripted_server() as script:
        never = threading.Event()
        script.answers = [*answers(5), [delta(content="a"), never]]
        output = tmp_path / "found.json"
        arguments = ["bench", script.url, "--num-prompts", "4", "--concurrency", "1", "--output", str(output)]
        with subprocess.Popen(
            [sys.executable, "-m", "longsight.cli.main", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            deadline = time.monotonic() + 60
            while len(script.asked) < 6 and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
            never.set()
    assert process.returncode == 130, err
    assert "2/4" in out
    assert "2 not finished" in out
    assert "Traceback" not in err
    assert json.loads(output.read_text())["interrupted"] is True


def test_the_documented_command(server: LiveServer, tmp_path: Path) -> None:
    """docs/server-bench.md's own line, with a shorter answer, beside the server of these tests."""
    page = (Path(__file__).parents[1] / "docs" / "server-bench.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("longsight bench http://"))
    words = shlex.split(line.replace("http://127.0.0.1:8000", server.url).replace("256", "640"))[1:]
    done = subprocess.run(
        [sys.executable, "-m", "longsight.cli.main", *words, "--output-len", "4"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OPENAI_API_KEY": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "TTFT" in done.stdout
    assert len(json.loads((tmp_path / "bench.json").read_text())["runs"]) == 4
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_the_help_names_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    out = capsys.readouterr().out
    for name in ("TTFT", "TPOT", "ITL", "E2EL", "Poisson", "--shared-prefix"):
        assert name in out
    assert command.MAX_PROMPTS == 100_000
