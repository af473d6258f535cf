"""/metrics as a scraper reads it, and the engine's numbers behind it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
import torch
from prometheus_client.parser import text_string_to_metric_families

from fake_model import FakeModel, LookupModel, ScriptedModel
from live_server import LiveServer, live_server, wait_for
from longsight.engine import Engine, Request, SamplingParams
from longsight.engine.repetition import is_stuck
from longsight.model import load_model, markup
from tiny_checkpoint import BLOCK

PROMPT = "x1y2z3w4 " * 40  # 360 tokens


class Scrape:
    """One answer of /metrics."""

    def __init__(self, text: str) -> None:
        self.samples = [s for family in text_string_to_metric_families(text) for s in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name with those labels."""
        return sum(s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items())

    def labels(self, name: str) -> list[dict[str, str]]:
        return [s.labels for s in self.samples if s.name == name]


def scrape(server: LiveServer) -> Scrape:
    response = httpx.get(f"{server.url}/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    return Scrape(response.text)


def complete(server: LiveServer, *, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    body = {"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 5, **fields}
    return httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=30)


def test_a_finished_request_is_in_every_metric(server: LiveServer) -> None:
    before = scrape(server)
    assert before("longsight_requests_total") == 0
    assert complete(server, headers={"x-stainless-retry-count": "2"}).status_code == 200
    assert complete(server).status_code == 200
    m = scrape(server)
    where = {"model": "tiny", "endpoint": "/v1/completions"}
    outcome = {**where, "status": "ok", "finish_reason": "length"}
    assert m("longsight_requests_total", retry="2", **outcome) == 1
    assert m("longsight_requests_total", retry="0", **outcome) == 1
    assert m("longsight_prompt_tokens_total", **where) == 720
    assert m("longsight_cached_tokens_total", **where) == m("longsight_prefix_hit_tokens_total") == 359
    assert m("longsight_prefix_lookup_tokens_total") == 720
    assert (m("longsight_prefix_lookups_total"), m("longsight_prefix_hits_total")) == (2, 1)
    assert m("longsight_computed_prompt_tokens_total") == 361
    assert m("longsight_completion_tokens_total", **where) == m("longsight_generated_tokens_total") == 10
    assert m("longsight_time_to_first_token_seconds_count", **where) == 2
    assert m("longsight_time_per_output_token_seconds_count", **where) == 2
    assert m("longsight_request_duration_seconds_count", **where) == 2
    assert m("longsight_queue_wait_seconds_count", **where) == 2
    total, first = m("longsight_request_duration_seconds_sum"), m("longsight_time_to_first_token_seconds_sum")
    assert total > first > m("longsight_queue_wait_seconds_sum") >= 0
    assert m("longsight_request_duration_seconds_bucket", le="3600.0", **where) == 2
    assert m("longsight_http_responses_total", method="POST", route="/v1/completions", status="200") == 2
    assert m("longsight_pages_total") == 64
    assert m("longsight_pages_used") == 0
    assert m("longsight_engine_alive") == 1
    assert m("longsight_steps_total") >= 7
    assert m("longsight_step_seconds_total") >= m("longsight_forward_seconds_total") > 0
    assert m("longsight_speculative_drafted_tokens_total") >= m("longsight_speculative_accepted_tokens_total") > 0
    (info,) = m.labels("longsight_info")
    assert (info["model"], info["backend"], info["dtype"], info["attention"]) == ("tiny", "fake", "float32", "sparse")


def test_a_client_invents_no_time_series(server: LiveServer) -> None:
    for i in range(5):
        assert httpx.get(f"{server.url}/v1/made-up-{i}").status_code == 404
        assert complete(server, model=f"made-up-{i}", headers={"x-stainless-retry-count": "9" * i}).status_code == 404
        httpx.get(f"{server.url}/v1/models/made-up-{i}")
    assert httpx.get(f"{server.url}/web/made-up").status_code == 404
    m = scrape(server)
    assert m("longsight_http_responses_total", route="unmatched", status="404") == 5
    assert m("longsight_http_responses_total", route="/web", status="404") == 1
    assert m("longsight_http_responses_total", route="/v1/models/{model:path}") == 5
    assert "made-up" not in httpx.get(f"{server.url}/metrics").text


def test_a_client_that_leaves_is_counted_as_cancelled() -> None:
    with live_server(LookupModel(seconds=0.01)) as server:
        body = {"model": "tiny", "prompt": PROMPT, "stream": True, "max_tokens": 500, "temperature": 0}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as stream:
            next(stream.iter_lines())
        wait_for(lambda: scrape(server)("longsight_requests_total", status="cancelled") == 1)
        server.wait_until_idle()


def test_the_queue_is_seen_while_it_lasts() -> None:
    with live_server(FakeModel(seconds=0.02), max_running=1) as server:
        threads = [threading.Thread(target=complete, args=(server,), kwargs={"max_tokens": 30}) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_for(lambda: scrape(server)("longsight_requests_waiting") == 2)
        assert scrape(server)("longsight_requests_running") == 1
        assert scrape(server)("longsight_pages_used") > 0
        for thread in threads:
            thread.join()
        assert scrape(server)("longsight_queue_wait_seconds_sum") > 0.02


def test_a_step_that_fails_is_counted() -> None:
    model = FakeModel(before=lambda tokens: 1 // 0)
    with live_server(model) as server:
        assert complete(server).status_code == 500
        m = scrape(server)
        assert m("longsight_failed_steps_total") == 1
        assert m("longsight_requests_total", status="error") == 1


def test_malformed_markup_is_counted() -> None:
    """A thinking marker out of place, a call to nothing, and one that never ends."""
    mark = markup.NAMESPACE
    answer = f'fine{markup.THINK}{mark}<tool_call>{mark}<invoke>{mark}</invoke>{mark}<invoke name="f">{mark}<a>1'
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    with live_server(ScriptedModel(lambda prompt: answer), pages=600, template=None) as server:
        with server.client() as client:
            client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "go"}],
                tools=tools,  # type: ignore[arg-type]
                temperature=0,
                max_tokens=200,
            )
        m = scrape(server)
    kinds = {labels["kind"] for labels in m.labels("longsight_parser_anomalies_total")}
    assert kinds == {"stray_marker", "nameless_call", "unfinished_call"}
    assert m("longsight_parser_anomalies_total") == 3


def test_openmetrics_for_those_who_ask(server: LiveServer) -> None:
    response = httpx.get(f"{server.url}/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


def test_probes_of_clients(server: LiveServer) -> None:
    for path in ("/", "/anthropic"):
        assert httpx.head(server.url + path).status_code == 200
    ready = httpx.get(f"{server.url}/ready")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})


def test_evictions_and_preemptions() -> None:
    model = FakeModel()
    engine = Engine(model, kv_bytes=8 * model.config.page_bytes(), chunk_tokens=64, speculate=False)  # type: ignore[arg-type]
    for i in range(3):
        list(engine.generate(Request([i] * 100, SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))))
    assert engine.prefix_cache.evictions > 0
    rivals = [Request([i] * 40, SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)) for i in (7, 8)]
    for request in rivals:
        engine.add(request)
    while engine.has_work:
        engine.step()
    assert engine.scheduler.preemptions == sum(r.preemptions for r in rivals) > 0
    # Read again after it was thrown out, but looked up, for these figures, once.
    assert engine.prefix_cache.lookups == 5
    assert engine.counters.generated_tokens == 3 * 2 + 2 * 40


def share_reused(selections: list[Any], lengths: int) -> tuple[int, int]:
    """(selected, also selected by the step before) over pairs of tokens (1, 2), (3, 4) ..."""
    by_token: dict[int, dict[int, Any]] = {}
    for s in selections:
        by_token.setdefault(s.token_index, {})[s.layer] = s.blocks
    selected = reused = 0
    for second in range(2, lengths, 2):
        for layer, groups in by_token[second].items():
            for now, then in zip(groups, by_token[second - 1][layer], strict=True):
                selected += len(now)
                reused += len(set(now) & set(then))
    return selected, reused


def test_reuse_is_what_the_recorded_selections_say(tiny_checkpoint: Path) -> None:
    """Every pair of steps is sampled here, and must count what the engine records for a request that asks for it."""
    model = load_model(tiny_checkpoint)
    prompt = torch.randint(0, 256, (20 * BLOCK,), generator=torch.Generator().manual_seed(0)).tolist()
    params = SamplingParams(max_tokens=21, temperature=0, ignore_eos=True)

    def run(**options: Any) -> tuple[Engine, Request]:
        engine = Engine(model, kv_bytes=64 * model.config.page_bytes(model.dtype), speculate=False)
        engine.runner.reuse.seconds = engine.runner.reuse._due = 0.0
        request = Request(prompt, params, **options)
        list(engine.generate(request))
        return engine, request

    plain, answer = run()
    recorded, watched = run(record_selection=True)
    assert answer.output == watched.output
    assert recorded.runner.reuse.selected == 0
    selected, reused = share_reused(watched.selections, 21)
    assert 0 < reused < selected
    assert (plain.runner.reuse.selected, plain.runner.reuse.reused) == (selected, reused)


def test_streams_too_short_to_choose_are_no_sample(tiny_checkpoint: Path) -> None:
    model = load_model(tiny_checkpoint)
    engine = Engine(model, kv_bytes=64 * model.config.page_bytes(model.dtype), speculate=False)
    engine.runner.reuse.seconds = engine.runner.reuse._due = 0.0
    list(engine.generate(Request([1] * 5, SamplingParams(max_tokens=20, temperature=0, ignore_eos=True))))
    assert engine.runner.reuse.selected == 0


def test_an_answer_that_is_stuck() -> None:
    varied = [i * i % 251 for i in range(400)]
    assert not is_stuck([])
    assert not is_stuck(varied)
    assert not is_stuck([5] * 95)
    assert is_stuck([5] * 96)
    assert is_stuck(varied + [1, 2, 3] * 40)
    assert is_stuck(varied + [*range(32)] * 5)
    assert not is_stuck(varied + [*range(33)] * 5)
    assert not is_stuck([5] * 300 + varied)
    assert not is_stuck(varied + [1, 2, 3] * 30)
