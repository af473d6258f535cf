"""POST /v1/completions: text in, text out, no chat template."""

from __future__ import annotations

from dataclasses import replace

from anyio import to_thread
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from longsight.server.answers import Choice
from longsight.server.body import read_text
from longsight.server.errors import invalid
from longsight.server.exchange import Exchange
from longsight.server.openai import TextEnvelope
from longsight.server.openai_answer import answer
from longsight.server.schema import MAX_PROMPTS, CompletionFields, answer_format, parse
from longsight.server.service import Service

MAX_TOKENS = 16  # the protocol's default


async def completions(http: HttpRequest) -> Response:
    service: Service = http.app.state.service
    body = await read_text(http, service.body_limit)
    fields, choices = await to_thread.run_sync(_prepare, service, body)
    exchange = Exchange(http, "completions", stream=bool(fields.stream))
    exchange.submit(choices)
    envelope = TextEnvelope(fields.model, service.tokenizer.decode)
    return await answer(exchange, fields, envelope)


def _prepare(service: Service, body: str) -> tuple[CompletionFields, list[Choice]]:
    fields = parse(CompletionFields, body)
    service.check_model(fields.model)
    params = replace(fields.sampling(service.defaults), grammar=answer_format(fields.response_format))
    prompts = [service.tokenizer.encode(p) if isinstance(p, str) else p for p in fields.prompts()]
    choices: list[Choice] = []
    for tokens in prompts:
        length = service.answer_length(len(tokens), fields.max_tokens, MAX_TOKENS)
        choices += [
            Choice(request=request, index=len(choices) + i)
            for i, request in enumerate(service.requests(tokens, replace(params, max_tokens=length)))
        ]
        if len(choices) > MAX_PROMPTS:
            raise invalid(f"{len(prompts)} prompts with n {fields.n} ask for more than {MAX_PROMPTS} answers", "n")
    return fields, choices
