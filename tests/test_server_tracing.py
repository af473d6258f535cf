"""Traces as an exporter gets them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from fake_model import FakeModel
from live_server import LiveServer, live_server, wait_for
from longsight.server.tracing import Tracer

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BODY = {"model": "tiny", "prompt": "x1y2" * 50, "temperature": 0, "max_tokens": 5}


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(exporter: InMemorySpanExporter) -> Iterator[LiveServer]:
    tracer = Tracer(exporter, immediately=True)
    with live_server(FakeModel(seconds=0.002), sinks=[tracer]) as server:
        yield server
    tracer.close()


def spans(exporter: InMemorySpanExporter, count: int) -> dict[str, ReadableSpan]:
    wait_for(lambda: len(exporter.get_finished_spans()) >= count)
    found = exporter.get_finished_spans()
    assert len(found) == count
    return {span.name: span for span in found}


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_and_its_stages(traced: LiveServer, exporter: InMemorySpanExporter, stream: bool) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-stainless-retry-count": "1"}
    answer = httpx.post(f"{traced.url}/v1/completions", json={**BODY, "stream": stream}, headers=headers)
    by_name = spans(exporter, 5)
    request = by_name["text_completion tiny"]
    assert request.kind is SpanKind.SERVER
    assert request.context is not None
    assert f"{request.context.trace_id:032x}" == TRACE
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == PARENT
    attributes = dict(request.attributes or {})
    assert attributes.pop("longsight.time_to_first_token") > 0  # type: ignore[operator]
    assert attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "http.request.resend_count": 1,
        "longsight.request_id": answer.headers["x-request-id"],
        "longsight.key": "anonymous",
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "longsight",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.model": "tiny",
        "gen_ai.usage.input_tokens": 200,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.reasoning.output_tokens": 0,
        "gen_ai.response.finish_reasons": ("length",),
    }
    # One after the other, without gaps, inside the request.
    stages = [by_name[name] for name in ("parse", "queue", "prefill", "decode")]
    times = [(s.start_time or 0, s.end_time or 0) for s in stages]
    assert all(s.parent is not None and s.parent.span_id == request.context.span_id for s in stages)
    assert all(begin <= end for begin, end in times)
    assert all(abs(a[1] - b[0]) < 1000 for a, b in pairwise(times))
    assert times[0][0] == request.start_time
    assert times[-1][1] <= (request.end_time or 0)
    # Four chunks of the prompt and four decode steps, of 2 ms each.
    assert times[2][1] - times[2][0] > 8e6
    assert times[3][1] - times[3][0] > 8e6


def test_without_a_parent_a_trace_begins_here(traced: LiveServer, exporter: InMemorySpanExporter) -> None:
    httpx.get(f"{traced.url}/v1/models", headers={"traceparent": "nonsense"})
    span = spans(exporter, 1)["GET /v1/models"]
    assert span.parent is None
    assert span.status.status_code is StatusCode.UNSET


def test_what_went_wrong_shows(exporter: InMemorySpanExporter) -> None:
    tracer = Tracer(exporter, immediately=True)
    with live_server(FakeModel(before=lambda tokens: 1 // 0), sinks=[tracer]) as server:
        assert httpx.post(f"{server.url}/v1/completions", json=BODY).status_code == 500
        assert httpx.post(f"{server.url}/v1/completions", json={}).status_code == 400
        wait_for(lambda: len(exporter.get_finished_spans()) >= 4)
    tracer.close()
    requests = [s for s in exporter.get_finished_spans() if s.kind is SpanKind.SERVER]
    assert [s.status.status_code for s in requests] == [StatusCode.ERROR, StatusCode.UNSET]


def test_nobody_pays_for_traces_that_are_not_asked_for() -> None:
    code = "import sys, longsight.server.app, longsight.server.tracing; assert 'opentelemetry' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
