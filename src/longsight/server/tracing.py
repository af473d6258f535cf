"""OpenTelemetry traces: a span per request, and in it one per stage, written when the request has ended.

The library is imported only when traces are asked for (the extra `otel`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from longsight import __version__
from longsight.server.access import CLIENT_GONE, Access

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.util.types import AttributeValue

EXPORT_SECONDS = 5


class Tracer:
    """A sink that exports spans; call `close` at the end, so that the last ones are not lost.

    exporter: where to; spans are handed over in the background. immediately: one at a time instead, for tests.
    """

    def __init__(self, exporter: SpanExporter, *, immediately: bool = False) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

        resource = Resource.create({"service.name": "longsight", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            SimpleSpanProcessor(exporter) if immediately else BatchSpanProcessor(exporter)
        )
        self._tracer = self._provider.get_tracer("longsight", __version__)

    @classmethod
    def to(cls, endpoint: str) -> Tracer:
        """Send spans to an OTLP collector over HTTP, http://127.0.0.1:4318 for one.

        Raises ModuleNotFoundError if the otel extra is not installed.
        """
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        path = "" if endpoint.rstrip("/").endswith("/v1/traces") else "/v1/traces"
        return cls(OTLPSpanExporter(endpoint=endpoint.rstrip("/") + path, timeout=EXPORT_SECONDS))

    def ended(self, access: Access) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {"traceparent": access.traceparent, "tracestate": access.tracestate}
        parent = TraceContextTextMapPropagator().extract({k: v for k, v in carrier.items() if v})
        span = self._tracer.start_span(
            _name(access),
            context=parent,
            kind=SpanKind.SERVER,
            start_time=_nanoseconds(access.started),
            attributes=_attributes(access),
        )
        record = access.record
        if access.status >= 500 or (record is not None and record.status == "error"):
            span.set_status(Status(StatusCode.ERROR))
        inside = set_span_in_context(span)
        for stage, begin, end in stages(access):
            child = self._tracer.start_span(stage, context=inside, start_time=_nanoseconds(begin))
            child.end(_nanoseconds(end))
        span.end(_nanoseconds(access.started + access.seconds))

    def close(self) -> None:
        self._provider.shutdown()


def stages(access: Access) -> list[tuple[str, float, float]]:
    """What a request went through, in Unix seconds: (stage, begin, end). Of several answers, the slowest in each."""
    marks = [access.begun]
    for name in ("arrived", "admitted", "first_token", "ended"):
        times = [getattr(request, name) for request in access.requests]
        known = [t for t in times if t is not None]
        if not known:
            break
        marks.append(max(max(known), marks[-1]))
    names = ("parse", "queue", "prefill", "decode")
    unix = access.started - access.begun
    return [(name, unix + a, unix + b) for name, a, b in zip(names, marks, marks[1:], strict=False)]


def _name(access: Access) -> str:
    """By the conventions: "{operation} {model}" for what a model does, "{method} {route}" for the rest."""
    if access.record is None:
        return f"{access.method} {access.route}"
    return f"{_operation(access)} {access.record.model}"


def _operation(access: Access) -> str:
    return "text_completion" if access.record and access.record.dialect == "completions" else "chat"


def _attributes(access: Access) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue] = {
        "http.request.method": access.method,
        "http.route": access.route,
        "http.response.status_code": access.status or CLIENT_GONE,
        "longsight.request_id": access.request_id,
        "longsight.key": access.caller,
    }
    if access.retry:
        found["http.request.resend_count"] = access.retry
    if (record := access.record) is not None:
        found |= {
            "gen_ai.operation.name": _operation(access),
            "gen_ai.provider.name": "longsight",
            "gen_ai.request.model": record.model,
            "gen_ai.response.model": record.model,
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.output_tokens": record.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
            "gen_ai.usage.reasoning.output_tokens": record.reasoning_tokens,
        }
        if record.finish_reason is not None:
            found["gen_ai.response.finish_reasons"] = [record.finish_reason]
        if record.ttft_s is not None:
            found["longsight.time_to_first_token"] = record.ttft_s
    return found


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
