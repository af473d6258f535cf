"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, cast, get_args

from anyio import to_thread
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from longsight.chat import openai_messages
from longsight.chat.messages import Thinking
from longsight.chat.request import ChatRequest
from longsight.server.answers import Choice
from longsight.server.body import read_text
from longsight.server.errors import invalid, show
from longsight.server.exchange import Exchange
from longsight.server.identity import Caller, caller_of, require_root_scope
from longsight.server.openai import ChatEnvelope
from longsight.server.openai_answer import answer
from longsight.server.schema import ChatFields, answer_format, parse
from longsight.server.service import Service

MODES = get_args(Thinking)
TIERS: Mapping[str, str] = {"standard": "standard", "default": "standard", "auto": "standard", "priority": "priority"}


async def chat_completions(http: HttpRequest) -> Response:
    service: Service = http.app.state.service
    body = await read_text(http, service.body_limit)
    # Parsing and tokenizing a megabyte takes a while: not on the loop that answers everyone else.
    fields, turn, choices = await to_thread.run_sync(_prepare, service, body, caller_of(http))
    exchange = Exchange(http, "openai", turn.service_tier, bool(fields.stream))
    exchange.submit(choices)
    split = service.reasoning_format == "split" if fields.reasoning_split is None else fields.reasoning_split
    reasoning: Literal["split", "inline"] = "split" if split else "inline"
    envelope = ChatEnvelope(fields.model, service.tokenizer.decode, tier_name(fields), reasoning=reasoning)
    return await answer(exchange, fields, envelope)


def _prepare(service: Service, body: str, caller: Caller) -> tuple[ChatFields, ChatRequest, list[Choice]]:
    fields = parse(ChatFields, body)
    turn = turn_of(fields, service)
    require_root_scope(caller, turn.messages)
    return fields, turn, service.choices(turn)


def turn_of(fields: ChatFields, service: Service) -> ChatRequest:
    """Raises ApiError or ChatError naming what is wrong."""
    params = fields.sampling(service.defaults)
    tools = openai_messages.tools(fields.tools)
    tier = fields.service_tier or "standard"
    return ChatRequest(
        model=fields.model,
        messages=openai_messages.messages(fields.messages),
        params=replace(params, stop=()),
        max_tokens=fields.answer_limit(),
        tools=tools,
        tool_choice=openai_messages.tool_choice(fields.tool_choice, tools),
        parallel_calls=fields.parallel_tool_calls is not False,
        thinking=_thinking(fields),
        stop=params.stop,
        answer_format=answer_format(fields.response_format),
        template_options=fields.chat_template_kwargs or {},
        service_tier=TIERS.get(tier, "standard"),
    )


def tier_name(fields: ChatFields) -> str:
    """The tier as the protocol calls it, whose clients know no "standard"; those who say so themselves do."""
    return fields.service_tier if fields.service_tier in ("standard", "priority") else "default"


def _thinking(fields: ChatFields) -> Thinking:
    """What the request says in any of the ways in which clients say it; the native one first."""
    if fields.thinking is not None:
        if fields.thinking.type not in MODES:
            raise invalid(
                f"thinking.type is {show(fields.thinking.type)}; it must be one of {', '.join(MODES)}", "thinking.type"
            )
        return cast(Thinking, fields.thinking.type)
    given = fields.chat_template_kwargs or {}
    if "thinking_mode" in given:
        if given["thinking_mode"] not in MODES:
            raise invalid(
                f"chat_template_kwargs.thinking_mode is {show(given['thinking_mode'])}; it must be one of "
                f"{', '.join(MODES)}",
                "chat_template_kwargs.thinking_mode",
            )
        return cast(Thinking, given["thinking_mode"])
    if "enable_thinking" in given:
        return "enabled" if given["enable_thinking"] else "disabled"
    return "disabled" if fields.reasoning_effort == "none" else "adaptive"
