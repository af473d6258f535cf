"""Prometheus metrics: what clients see (from finished requests) and what the engine does (read from it when asked)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from longsight import __version__
from longsight.engine import EngineDriver
from longsight.engine.repetition import is_stuck
from longsight.ops import kernels
from longsight.server.access import CLIENT_GONE, Access, Accesses
from longsight.server.usage import UsageRecord

if TYPE_CHECKING:
    from longsight.engine import Engine

# Seconds. A million tokens are read for the better part of an hour on a small machine.
LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600)
PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
MOST_RETRIES = 5  # as a label; more count as this many


class Metrics:
    """One application's metrics. `record` hears of usage, `ended` of every HTTP request."""

    def __init__(self, driver: EngineDriver, model: str, accesses: Accesses) -> None:
        self.registry = CollectorRegistry()
        self._model, self._exchanges = model, accesses
        self.registry.register(EngineCollector(driver, model))
        ProcessCollector(registry=self.registry)

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"longsight_{name}", about, labels, registry=self.registry)

        def histogram(name: str, about: str, buckets: tuple[float, ...] = LONG) -> Histogram:
            return Histogram(
                f"longsight_{name}_seconds", about, ("model", "endpoint"), registry=self.registry, buckets=buckets
            )

        self.requests = counter(
            "requests",
            "Requests to the model that have ended. retry: the client's count of tries before this one",
            *("model", "dialect", "endpoint", "status", "finish_reason", "retry"),
        )
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens, cached ones included", "model", "endpoint")
        self.cached_tokens = counter("cached_tokens", "Prompt tokens that were known already", "model", "endpoint")
        self.completion_tokens = counter("completion_tokens", "Generated tokens, with reasoning", "model", "endpoint")
        self.reasoning_tokens = counter("reasoning_tokens", "Generated tokens of reasoning", "model", "endpoint")
        self.first_token = histogram("time_to_first_token", "From the request to its first token")
        self.per_token = histogram("time_per_output_token", "Mean time between an answer's tokens", PER_TOKEN)
        self.duration = histogram("request_duration", "From the request to the end of its answer")
        self.queue = histogram("queue_wait", "From tokenized prompt to the engine's first work on it")
        self.anomalies = counter("parser_anomalies", "Malformed markup in answers, by what was wrong", "kind")
        self.stuck = counter("repetitive_answers", "Answers that end in the same few tokens over and over", "model")
        self.responses = counter("http_responses", "HTTP responses", "method", "route", "status")

    def record(self, record: UsageRecord) -> None:
        """An observer of finished requests, on any thread."""
        # Names that a client made up would each become a time series of their own.
        model = record.model if record.model == self._model else "other"
        where = (model, record.endpoint)
        access = self._exchanges.get(record.request_id)
        retry = str(min(access.retry, MOST_RETRIES)) if access else "0"
        outcome = (record.status, record.finish_reason or "none", retry)
        self.requests.labels(model, record.dialect, record.endpoint, *outcome).inc()
        self.prompt_tokens.labels(*where).inc(record.prompt_tokens)
        self.cached_tokens.labels(*where).inc(record.cached_tokens)
        self.completion_tokens.labels(*where).inc(record.completion_tokens)
        self.reasoning_tokens.labels(*where).inc(record.reasoning_tokens)
        self.duration.labels(*where).observe(record.duration_s)
        if record.ttft_s is not None:
            self.first_token.labels(*where).observe(record.ttft_s)
            if record.completion_tokens > 1:
                decode = max(record.duration_s - record.ttft_s, 0.0)
                self.per_token.labels(*where).observe(decode / (record.completion_tokens - 1))
        if access is not None:
            access.record = record
            for request in access.requests:
                if request.arrived is not None and request.admitted is not None:
                    self.queue.labels(*where).observe(request.admitted - request.arrived)
                if is_stuck(request.output):
                    self.stuck.labels(model).inc()
            for kind, count in access.anomalies().items():
                self.anomalies.labels(kind).inc(count)

    def ended(self, access: Access) -> None:
        self.responses.labels(access.method, access.route, str(access.status or CLIENT_GONE)).inc()

    def expose(self, accept: str) -> tuple[bytes, str]:
        """All metrics as text in the format that a scraper accepts, and that format's media type."""
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type


class EngineCollector(Collector):
    """Reads the engine's numbers when a scraper asks; nothing is added to a step for it."""

    def __init__(self, driver: EngineDriver, model: str) -> None:
        self._driver, self._model = driver, model

    def collect(self) -> Iterator[Metric]:
        engine, stats = self._driver.engine, self._driver.stats()
        yield _info(engine, self._model)
        paused = engine.runner.paused_screens() if engine.screened else 0
        gauges: dict[str, tuple[str, float]] = {
            "engine_alive": ("1 while the engine's thread runs", stats.alive),
            "draining": ("1 while the server finishes what it has and takes no more", stats.draining),
            "requests_running": ("Requests being read or answered", stats.running),
            "requests_waiting": ("Requests in the queue", stats.waiting),
            "pages_used": ("Pages of the cache that running requests hold", stats.pages_used),
            "pages_cached": ("Pages that nobody holds and whose prefix is still known", engine.pages.cached),
            "pages_total": ("Pages of the cache", stats.pages_total),
            "page_bytes": ("Bytes of one page in all layers", engine.page_bytes),
            "screening_paused_layers": ("Layers that do without 8-bit copies for now", paused),
        }
        for name, (about, value) in gauges.items():
            yield GaugeMetricFamily(f"longsight_{name}", about, float(value))
        cache, counters, reuse = engine.prefix_cache, engine.counters, engine.runner.reuse
        sums: dict[str, tuple[str, float]] = {
            "prefix_lookups": ("Prompts admitted, each looked up in the prefix cache", cache.lookups),
            "prefix_hits": ("Prompts of which a beginning was known", cache.hits),
            "prefix_lookup_tokens": ("Tokens of the prompts looked up", cache.looked_up_tokens),
            "prefix_hit_tokens": ("Prompt tokens found in the prefix cache", cache.hit_tokens),
            "prefix_evictions": ("Known pages given away for want of unused ones", cache.evictions),
            "preemptions": ("Running requests that had to give their pages back", engine.scheduler.preemptions),
            "steps": ("Steps of the engine", counters.steps),
            "failed_steps": ("Steps that ended their requests with an error", counters.failed_steps),
            "step_seconds": ("Time in steps", counters.step_seconds),
            "forward_seconds": ("The part of it in the model's forward pass", counters.forward_seconds),
            "computed_prompt_tokens": ("Prompt tokens that the model read", counters.prompt_tokens),
            "generated_tokens": ("Tokens generated, as they come", counters.generated_tokens),
            "speculative_drafted_tokens": ("Guessed tokens verified", counters.drafted),
            "speculative_accepted_tokens": ("Guessed tokens that came true", counters.accepted),
            "selected_blocks_sampled": ("Blocks selected in sampled decode steps", reuse.selected),
            "selected_blocks_reused": ("Those that the step before had selected too", reuse.reused),
        }
        for name, (about, value) in sums.items():
            yield CounterMetricFamily(f"longsight_{name}", about, value)


def _info(engine: Engine, model_id: str) -> Metric:
    """attention: which path the layers with an index branch take. There is no other: a backend that cannot select
    blocks refuses the model."""
    model, backend = engine.model, engine.model.backend.NAME
    return InfoMetricFamily(
        "longsight",
        "What is served, and by what",
        {
            "version": __version__,
            "model": model_id,
            "backend": backend,
            "isa": kernels.isa() if backend == "cpu" else "",
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": "sparse" if model.config.shape().sparse_layers else "full",
            "screened": str(engine.screened).lower(),
        },
    )
