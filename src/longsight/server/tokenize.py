"""POST /tokenize and /detokenize, with vLLM's requests and answers: text or a conversation to token ids, and back.

A conversation's tokens are those that a chat request with the same fields would read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from anyio import to_thread
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from longsight.server.body import read_text
from longsight.server.chat_completions import turn_of
from longsight.server.errors import invalid
from longsight.server.identity import caller_of, require_model, require_root_scope
from longsight.server.schema import ChatFields, ThinkingFields, checked
from longsight.server.service import Service

CHAT = {"model", "messages", "tools", "thinking", "reasoning_effort", "chat_template_kwargs"}
MAX_TOKENS = 4 * 2**20  # of one request: four contexts of a million


class TokenizeFields(BaseModel):
    """`prompt`, plain text, or what a chat request says of its prompt (CHAT).

    add_special_tokens: put the tokenizer's own start and end tokens around a prompt (default true); a conversation has
    what its template writes. add_generation_prompt: end where the assistant's answer begins.
    """

    model_config = ConfigDict(strict=True, extra="allow")
    model: str = ""
    prompt: str | None = None
    messages: list[Any] = Field(default_factory=list)
    tools: list[Any] | None = None
    thinking: ThinkingFields | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_token_strs: bool | None = None

    def check(self) -> None:
        """Raises ApiError 400 for what does not go together."""
        if (self.prompt is None) == (not self.messages):
            raise invalid("either prompt or messages is needed, and not both", "prompt")
        if self.messages and self.add_special_tokens:
            message = "add_special_tokens is true; the template writes those of messages, so leave it out or send false"
            raise invalid(message, "add_special_tokens")
        if self.continue_final_message:
            message = "continue_final_message is true, which this server does not support; leave it out or send false"
            raise invalid(message, "continue_final_message", "unsupported_parameter")


class DetokenizeFields(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    model: str = ""
    tokens: list[int]


async def tokenize(http: HttpRequest) -> Response:
    """Text or a conversation to token ids, with their number."""
    service: Service = http.app.state.service
    body = await read_text(http, service.body_limit)
    caller = caller_of(http)

    def work() -> dict[str, Any]:
        fields = checked(TokenizeFields, body)
        _check_model(service, fields.model)
        fields.check()
        if fields.prompt is None:
            turn = turn_of(ChatFields(**fields.model_dump(include=CHAT)), service)
            require_root_scope(caller, turn.messages)
            tokens = service.prompt(turn, add_generation_prompt=fields.add_generation_prompt).tokens
        else:
            tokens = service.tokenizer.encode(fields.prompt, fields.add_special_tokens is not False)
        _check_count(len(tokens), "prompt" if fields.messages == [] else "messages")
        return {
            "count": len(tokens),
            "max_model_len": service.limits.context(service.driver.engine.max_model_len),
            "tokens": list(tokens),
            "token_strs": service.tokenizer.convert_ids_to_tokens(tokens) if fields.return_token_strs else None,
        }

    return await _admitted(http, work)


async def detokenize(http: HttpRequest) -> Response:
    """Token ids to text, special tokens included."""
    service: Service = http.app.state.service
    body = await read_text(http, service.body_limit)

    def work() -> dict[str, Any]:
        fields = checked(DetokenizeFields, body)
        _check_model(service, fields.model)
        _check_count(len(fields.tokens), "tokens")
        _check_ids(fields.tokens, service.driver.engine.model.config.vocab_size)
        return {"prompt": service.tokenizer.decode(fields.tokens, skip_special_tokens=False)}

    return await _admitted(http, work)


async def _admitted(http: HttpRequest, work: Callable[[], dict[str, Any]]) -> Response:
    """The result of `work`, done on a worker thread. It counts as a request of its key, and as none of its tokens,
    which the model never reads."""
    service: Service = http.app.state.service
    caller = caller_of(http)
    require_model(caller, service.model_id, *service.aliases)
    gate = service.gate
    ticket = None if gate is None else gate.admit(caller, 0)
    try:
        result = await to_thread.run_sync(work)
    finally:
        if ticket is not None:
            ticket.close(0)
    return JSONResponse(result, headers={} if gate is None else dict(gate.headers(caller)))


def _check_model(service: Service, model: str) -> None:
    if model:
        service.check_model(model)


def _check_count(count: int, param: str) -> None:
    if count > MAX_TOKENS:
        raise invalid(f"{param} has {count} tokens; one request may have {MAX_TOKENS}", param)


def _check_ids(tokens: Sequence[int], vocab_size: int) -> None:
    wrong = next((i for i, token in enumerate(tokens) if not 0 <= token < vocab_size), None)
    if wrong is not None:
        raise invalid(f"tokens.{wrong} is {tokens[wrong]}; token ids run from 0 to {vocab_size - 1}", f"tokens.{wrong}")


routes = [
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
]
