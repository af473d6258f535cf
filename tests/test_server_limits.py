"""What requests, keys and organisations may take: the numbers, whence they come, and the gate that holds to them."""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from fake_model import ByteTokenizer, LookupModel
from live_server import live_server, wait_for
from longsight.engine import EngineDriver
from longsight.server.deadline import deadline_of
from longsight.server.errors import ApiError
from longsight.server.gate import RateGate, Ticket
from longsight.server.identity import Caller
from longsight.server.limits import Limits, LimitsError
from longsight.server.service import Service
from longsight.server.window import SECOND, SlidingWindow

ALICE, BOB = Caller("alice", "acme"), Caller("bob", "acme")
DOCS = Path(__file__).parent.parent / "docs" / "limits.md"


class Clock:
    """Monotonic nanoseconds that a test moves on."""

    def __init__(self) -> None:
        self.now = 1_000 * SECOND

    def __call__(self) -> int:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)


def gate_of(clock: Clock, **limits: int | None) -> RateGate:
    return RateGate(Limits(**{"rpm": None, "tpm": None, **limits}), clock)  # type: ignore[arg-type]


def refusal(gate: RateGate, caller: Caller, tokens: int, status: int = 429) -> ApiError:
    with pytest.raises(ApiError) as caught:
        gate.admit(caller, tokens)
    assert caught.value.status == status
    return caught.value


# Where limits come from


def test_defaults_then_file_then_flags(tmp_path: Path) -> None:
    file = tmp_path / "limits.toml"
    file.write_text('[limits]\nrpm = 7\ntpm = "none"\nbody_bytes = "2MiB"\n')
    limits = Limits.load(file, ["rpm=9", "concurrency=3", "image_bytes=1MB"], body_bytes=5, video_file_bytes=6)
    assert (limits.rpm, limits.tpm, limits.body_bytes) == (9, None, 2 * 2**20)
    assert (limits.concurrency, limits.image_bytes, limits.video_file_bytes) == (3, 1_000_000, 6)
    assert limits.context_tokens == Limits().context_tokens


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("rpn=5", "'rpn' is unknown; did you mean rpm?"),
        ("zzz=5", "'zzz' is unknown; there are body_bytes, "),
        ("rpm", "'rpm' is not KEY=VALUE"),
        ("rpm=", "rpm is ''; it must be a whole number of at least 1, or none"),
        ("rpm=0", "rpm is '0'; it must be a whole number of at least 1, or none"),
        ("rpm=1.5", "rpm is '1.5'"),
        ("rpm=" + "9" * 30, "rpm is '999"),
        ("guaranteed_context=none", "guaranteed_context is 'none'; it must be a whole number of at least 1"),
        ("above_floor_concurrency=-1", "above_floor_concurrency is '-1'; it must be a whole number, 0 or more"),
        ("body_bytes=many", "body_bytes is 'many'; it must be a size of at least 1 byte, as 64MiB"),
        ("context_tokens=1000", "guaranteed_context 524288 is more than context_tokens 1000"),
    ],
)
def test_a_wrong_flag_is_named(flag: str, words: str) -> None:
    with pytest.raises(LimitsError, match=re.escape(words)):
        Limits.load(flags=[flag])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[limits", "is not TOML"),
        ("rpm = 5", "'rpm' is unknown; the file has one table, [limits]"),
        ("[limits]\nrpm = true", "rpm is True; it must be"),
        ("[limits]\nrpm = 1.0", "rpm is 1.0; it must be"),
        ("[limits]\nrpms = 1", "'rpms' is unknown; did you mean rpm?"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "limits.toml"
    file.write_text(text)
    with pytest.raises(LimitsError, match=re.escape(words)) as caught:
        Limits.load(file)
    assert str(file) in str(caught.value)


def test_the_documented_limits_are_the_limits() -> None:
    documented = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", DOCS.read_text(), re.MULTILINE))
    fields = {f.name: f.default for f in dataclasses.fields(Limits)}
    assert documented.keys() == fields.keys()
    for flag in (f"{name}={value}" for name, value in documented.items()):
        name = flag.partition("=")[0]
        assert getattr(Limits.load(flags=[flag]), name) == fields[name], flag


def test_an_engine_that_holds_less_than_is_guaranteed_says_so() -> None:
    limits = Limits(context_tokens=2000, guaranteed_context=1500)
    assert limits.floor_warning(1500) is None
    warning = limits.floor_warning(1024)
    assert warning is not None
    assert "1,024 tokens, less than the guaranteed context of 1,500" in warning
    with live_server(limits=limits) as server:
        card = httpx.get(f"{server.url}/v1/models/tiny").json()
        assert (card["context_length"], card["guaranteed_context"], card["max_output_tokens"]) == (1024, 1024, 1024)
    with live_server(limits=Limits(context_tokens=500, guaranteed_context=400)) as server:
        card = httpx.get(f"{server.url}/v1/models/tiny").json()
        assert (card["context_length"], card["guaranteed_context"]) == (500, 400)


# The window and the gate


@given(st.lists(st.tuples(st.integers(0, 40 * SECOND), st.integers(1, 10)), max_size=60), st.integers(10, 25))
def test_a_window_never_holds_more_than_its_limit_in_any_minute_and_says_the_exact_wait(
    steps: list[tuple[int, int]], limit: int
) -> None:
    window, now, added = SlidingWindow(), 10**12 + 7, []
    for pause, amount in steps:
        now += pause
        wait = window.wait(amount, limit, now)
        if wait:
            assert window.wait(amount, limit, now + wait - 1) > 0 or wait == 1
            assert sum(a for t, a in added if now - t < 61 * SECOND) + amount > limit, "refused with room to spare"
            now += wait
            assert window.wait(amount, limit, now) == 0
        window.add(amount, now)
        added.append((now, amount))
        assert sum(a for t, a in added if now - t < 60 * SECOND) <= limit


def admitted_or_told_to_wait(gate: RateGate, caller: Caller, tokens: int) -> Ticket | None:
    try:
        return gate.admit(caller, tokens)
    except ApiError as error:
        refused = error
    assert refused.status == 429
    assert refused.retry_after is not None
    assert 0 < refused.retry_after <= 61
    return None


actions = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), st.sampled_from([ALICE, BOB]), st.integers(1, 60)),
        st.tuples(st.just("close"), st.integers(0, 10), st.integers(0, 100)),
        st.tuples(st.just("pass"), st.floats(0, 30), st.just(0)),
    ),
    max_size=80,
)


@settings(max_examples=150)
@given(actions)
def test_the_gate_holds_to_every_limit_and_every_ticket_comes_back(steps: list[tuple[Any, Any, Any]]) -> None:
    clock = Clock()
    limits = Limits(
        rpm=6,
        tpm=120,
        concurrency=3,
        organisation_rpm=9,
        organisation_concurrency=4,
        guaranteed_context=50,
        above_floor_concurrency=1,
    )
    gate = RateGate(limits, clock)
    live: list[tuple[Ticket, Caller, int]] = []
    admitted: list[list[Any]] = []  # [when, caller, tokens charged], as an independent account
    for kind, first, second in steps:
        if kind == "pass":
            clock.pass_by(first)
        elif kind == "close" and live:
            ticket, caller, tokens = live.pop(first % len(live))
            used = min(second, tokens)
            ticket.close(used)
            ticket.close(10**9)
            entry = next(e for e in admitted if e[3] is ticket)
            entry[2] = used
        elif kind == "admit":
            ticket = admitted_or_told_to_wait(gate, first, second)
            if ticket is None:
                continue
            live.append((ticket, first, second))
            admitted.append([clock.now, first, second, ticket])
            minute = [e for e in admitted if clock.now - e[0] < 60 * SECOND]
            mine = [e for e in minute if e[1] is first]
            assert len(mine) <= 6
            assert sum(e[2] for e in mine) <= 120
            assert len(minute) <= 9
            assert sum(c is first for _, c, _ in live) <= 3
            assert len(live) <= 4
            assert sum(tokens > 50 for _, _, tokens in live) <= 1
    for ticket, _, _ in live:
        ticket.close(0)
    clock.pass_by(61)
    for caller in (ALICE, ALICE, ALICE, BOB):
        gate.admit(caller, 40)
    refusal(gate, BOB, 1)  # the organisation's four


def test_rpm_waits_exactly() -> None:
    clock = Clock()
    gate = gate_of(clock, rpm=2)
    clock.pass_by(0.25)
    gate.admit(ALICE, 1).close(1)
    clock.pass_by(5)
    gate.admit(ALICE, 1).close(1)
    clock.pass_by(5)
    error = refusal(gate, ALICE, 1)
    assert (error.code, error.type, error.native) == ("rate_limit_exceeded", "rate_limit_error", 1002)
    assert error.retry_after == 61 - 10.25
    assert "the API key alice has used its 2 requests a minute; try again in 50.8 s" in str(error)
    assert error.headers()["retry-after-ms"] == "50750"
    gate.admit(BOB, 1)
    clock.pass_by(error.retry_after)
    gate.admit(ALICE, 1)
    refusal(gate, ALICE, 1)


def test_tokens_are_reserved_and_settled() -> None:
    clock = Clock()
    gate = gate_of(clock, tpm=100)
    ticket = gate.admit(ALICE, 90)
    assert refusal(gate, ALICE, 20).native == 1039
    ticket.close(30)
    other = gate.admit(ALICE, 70)
    other.close(80)  # more than it said: only this difference goes over
    assert gate.headers(ALICE)["x-ratelimit-remaining-tokens"] == "0"
    clock.pass_by(61)
    slow = gate.admit(ALICE, 100)
    clock.pass_by(61)
    gate.admit(ALICE, 100)
    slow.close(0)  # was admitted over a minute ago: gives nothing back to this minute
    refusal(gate, ALICE, 1)


def test_what_no_waiting_helps_is_a_400() -> None:
    clock = Clock()
    gate = gate_of(clock, tpm=100, context_tokens=1000, guaranteed_context=500)
    assert "may use 100 a minute" in str(refusal(gate, ALICE, 101, 400))
    assert refusal(gate, ALICE, 1001, 400).code == "context_length_exceeded"
    none_above = gate_of(clock, context_tokens=1000, guaranteed_context=500, above_floor_concurrency=0)
    assert "one may have 500 here" in str(refusal(none_above, ALICE, 501, 400))


def test_by_default_the_whole_context_of_the_engine_may_be_used() -> None:
    gate, million = RateGate(Limits()), 1 << 20
    gate.admit(ALICE, 2 * million).close(0)
    with live_server(limits=Limits()) as server:
        server.engine.max_model_len = 2 * million
        card = httpx.get(f"{server.url}/v1/models/tiny").json()
        assert (card["context_length"], card["guaranteed_context"]) == (2 * million, 524_288)


def test_long_requests_run_few_at_a_time() -> None:
    gate = gate_of(Clock(), context_tokens=1000, guaranteed_context=500)
    gate.admit(ALICE, 5000, longest=500)  # many short sequences are no long one
    first = gate.admit(ALICE, 501)
    error = refusal(gate, BOB, 501)
    assert "of more than 500 tokens run 1 at a time" in str(error)
    assert 1 <= int(error.headers()["retry-after"]) <= 60
    gate.admit(BOB, 500)
    first.close(1)
    gate.admit(BOB, 501)


def test_a_keys_own_limits_and_the_headers() -> None:
    clock = Clock()
    gate = gate_of(clock, rpm=2, tpm=1000, organisation_rpm=4)
    special = Caller("special", "acme", rpm=50, tpm=60)
    gate.admit(special, 10)
    clock.pass_by(1)
    assert gate.headers(special) == {
        "x-ratelimit-limit-requests": "4",
        "x-ratelimit-remaining-requests": "3",
        "x-ratelimit-reset-requests": "60.000s",
        "x-ratelimit-limit-tokens": "60",
        "x-ratelimit-remaining-tokens": "50",
        "x-ratelimit-reset-tokens": "60.000s",
    }
    assert gate_of(clock).headers(ALICE) == {}


def test_memory_is_for_the_keys_of_the_last_minutes() -> None:
    clock = Clock()
    gate = gate_of(clock, rpm=5)
    stays = gate.admit(ALICE, 1)
    for i in range(2000):
        gate.admit(Caller(f"key{i}", f"org{i}"), 1).close(1)
        clock.pass_by(1)
        assert len(gate._accounts) < 2 * 61 + 10
    stays.close(1)


# Over HTTP


def test_a_rate_limit_as_the_official_client_sees_it() -> None:
    with live_server(gate=RateGate(Limits(rpm=2, tpm=None))) as server, server.client() as client:
        ask = client.completions.with_raw_response.create
        remaining = [ask(model="tiny", prompt="abc", max_tokens=1).headers["x-ratelimit-remaining-requests"]]
        stream = client.completions.with_raw_response.create(model="tiny", prompt="abc", max_tokens=1, stream=True)
        list(stream.parse())
        remaining.append(stream.headers["x-ratelimit-remaining-requests"])
        assert remaining == ["1", "0"]
        with pytest.raises(openai.RateLimitError, match="has used its 2 requests a minute") as caught:
            ask(model="tiny", prompt="abc", max_tokens=1)
        headers = caught.value.response.headers
        assert caught.value.code == "rate_limit_exceeded"
        assert headers["x-should-retry"] == "true"
        assert headers["x-ratelimit-remaining-requests"] == "0"
        assert 1 <= int(headers["retry-after"]) <= 60
        assert 0 < int(headers["retry-after-ms"]) <= 60_000


def test_a_client_waits_as_long_as_it_is_told() -> None:
    class Hurried(Clock):
        """Real time, from wherever a test puts it."""

        def __call__(self) -> int:
            return self.now + time.monotonic_ns()

    clock = Hurried()
    clock.now = 1_000 * SECOND - time.monotonic_ns()
    with live_server(gate=RateGate(Limits(rpm=1), clock)) as server, server.client(max_retries=1) as client:
        ask = client.completions.with_raw_response.create
        ask(model="tiny", prompt="abc", max_tokens=1)
        clock.now += 1_060 * SECOND + SECOND // 2 - clock()  # half a second before there is room again
        assert ask(model="tiny", prompt="abc", max_tokens=1).retries_taken == 1


def test_concurrency_ends_with_the_request_however_it_ends() -> None:
    gate = RateGate(Limits(rpm=None, concurrency=1))
    with live_server(LookupModel(seconds=0.01), gate=gate) as server, server.client() as client:
        long: dict[str, Any] = {"model": "tiny", "prompt": "abcdabcdabcd", "max_tokens": 500, "temperature": 0}
        stream = client.completions.create(**long, stream=True)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError, match="has 1 requests running of 1"):
            client.completions.create(**long)
        stream.close()
        server.wait_until_idle()
        thread = threading.Thread(target=lambda: client.completions.create(**{**long, "max_tokens": 60}))
        thread.start()
        wait_for(lambda: server.engine.has_work)
        with pytest.raises(openai.RateLimitError):
            client.completions.create(**long)
        thread.join()
        client.completions.create(**{**long, "max_tokens": 1})


def test_an_answer_longer_than_allowed_is_refused() -> None:
    limits = Limits(max_output_tokens=10)
    with live_server(limits=limits) as server, server.client() as client:
        with pytest.raises(openai.BadRequestError, match="max_tokens is 11; an answer can have 10 tokens here"):
            client.completions.create(model="tiny", prompt="abcabc", max_tokens=11)
        client.completions.create(model="tiny", prompt="abcabc", max_tokens=10)


# Deadlines


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-stainless-timeout": "30"}, 30),
        ({"x-stainless-timeout": "NOT_GIVEN", "x-stainless-read-timeout": "1.5"}, 1.5),
        ({}, None),
        ({"x-stainless-timeout": "nan"}, None),
        ({"x-stainless-timeout": "inf"}, None),
        ({"x-stainless-timeout": "-3"}, None),
        ({"x-stainless-timeout": "0"}, None),
    ],
)
def test_deadlines(headers: dict[str, str], seconds: float | None) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    request = Request({"type": "http", "headers": raw})
    before = time.monotonic()
    deadline = deadline_of(request)
    if seconds is None:
        assert deadline is None
    else:
        assert deadline is not None
        assert before + seconds <= deadline <= time.monotonic() + seconds
    assert deadline_of(request, stream=True) is None


@pytest.mark.parametrize(
    ("prompt", "asked", "length"),
    [(100, None, 131_072), (400_000, None, 124_288), (520_192, None, 4096), (521_000, None, 131_072), (100, 7, 7)],
)
def test_a_default_length_moves_nobody_above_the_floor(prompt: int, asked: int | None, length: int) -> None:
    with live_server() as server:
        server.engine.max_model_len = 1_000_000
        service = Service(EngineDriver(server.engine), ByteTokenizer(), "tiny")
        try:
            assert service.answer_length(prompt, asked, 131_072) == length
        finally:
            service.driver.close(5)
