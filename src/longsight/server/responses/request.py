"""From a request's body to a turn, and to the fields that its response object repeats."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from longsight.chat.request import ChatRequest
from longsight.server.answers import Choice
from longsight.server.chat_completions import TIERS
from longsight.server.errors import invalid, show
from longsight.server.identity import Caller, require_root_scope
from longsight.server.responses.fields import ResponsesFields, parse_fields
from longsight.server.responses.items import Conversation
from longsight.server.responses.tools import Toolbox
from longsight.server.service import Service

PREVIOUS = "previous_response_id"
MAX_WARNING = 1000  # characters of the header


@dataclass(frozen=True)
class Prepared:
    """A request that can be answered. input: the JSON of its own items, each with an id. warnings: what was passed
    over."""

    id: str
    fields: ResponsesFields
    turn: ChatRequest
    toolbox: Toolbox
    input: bytes
    warnings: Sequence[str]
    created: int

    @property
    def stored(self) -> bool:
        return self.fields.store is not False

    def headers(self) -> dict[str, str]:
        if not self.warnings:
            return {}
        told = f"passed over: {'; '.join(self.warnings)}"[:MAX_WARNING]
        return {"x-longsight-warning": re.sub("[^ -~]", "?", told)}

    def base(self) -> dict[str, Any]:
        """The response object's fields that are known before the answer."""
        fields, turn = self.fields, self.turn
        reasoning = fields.reasoning
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": None,
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": fields.instructions,
            "max_output_tokens": fields.answer_limit(),
            "max_tool_calls": None,
            "model": turn.model,
            "output": [],
            "parallel_tool_calls": turn.parallel_calls,
            "previous_response_id": fields.previous_response_id,
            "reasoning": {
                "effort": None if reasoning is None else reasoning.effort,
                "summary": None if reasoning is None else reasoning.summary,
            },
            "service_tier": "priority" if turn.service_tier == "priority" else "default",
            "store": self.stored,
            "temperature": turn.params.temperature,
            "text": {"format": (fields.text and fields.text.format) or {"type": "text"}},
            "tool_choice": "auto" if fields.tool_choice is None else fields.tool_choice,
            "tools": [_whole(tool) for tool in fields.tools or ()],
            "top_p": turn.params.top_p,
            "top_logprobs": 0,
            "presence_penalty": turn.params.presence_penalty,
            "frequency_penalty": turn.params.frequency_penalty,
            "truncation": "disabled",
            "usage": None,
            "user": None,
            "metadata": fields.metadata or {},
            "prompt_cache_key": fields.prompt_cache_key,
            "safety_identifier": fields.safety_identifier,
        }


def _whole(tool: Any) -> Any:
    """A function with every field that the protocol has a function repeat."""
    if not isinstance(tool, dict) or tool.get("type") != "function":
        return tool
    return {**tool, **{name: tool.get(name) for name in ("description", "parameters", "strict")}}


def prepare(service: Service, body: str, caller: Caller) -> tuple[Prepared, list[Choice]]:
    """On a worker thread. Raises ApiError or ChatError naming what is wrong."""
    prepared = read(service, body, caller)
    return prepared, service.choices(prepared.turn)


def read(service: Service, body: str, caller: Caller) -> Prepared:
    fields = parse_fields(body)
    service.check_model(fields.model)
    params = fields.sampling(service.defaults)
    toolbox = Toolbox.of(fields.tools)
    choice = toolbox.choose(fields.tool_choice)
    own = _own_items(fields)
    conversation = Conversation(service.signer)
    messages = conversation.messages(_all_items(service, fields, own, caller))
    require_root_scope(caller, messages)
    turn = ChatRequest(
        model=fields.model,
        messages=messages,
        params=replace(params, stop=()),
        max_tokens=fields.answer_limit(),
        tools=toolbox.tools,
        tool_choice=choice,
        parallel_calls=fields.parallel_tool_calls is not False,
        thinking=fields.thinking,
        stop=params.stop,
        answer_format=fields.answer_format(),
        service_tier=TIERS.get(fields.service_tier or "standard", "standard"),
    )
    warnings = [*toolbox.warnings, *conversation.warnings]
    id = f"resp_{secrets.token_hex(24)}"
    prepared = Prepared(id, fields, turn, toolbox, _json(own, "input"), warnings, int(time.time()))
    _json(prepared.base(), "the request")
    return prepared


def _own_items(fields: ResponsesFields) -> list[Any]:
    """This request's own items, with ids for those that have none."""
    given = fields.input
    if given is None and fields.previous_response_id is not None:
        given = []
    if isinstance(given, str):
        given = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}]
    if not isinstance(given, list):
        raise invalid(f"input is {show(given)}; it must be text or a list of items", "input")
    if not given and fields.previous_response_id is None and not fields.instructions:
        raise invalid("input is empty; it must hold at least one item", "input")
    return [_with_id(item) if isinstance(item, dict) else item for item in given]


def _with_id(item: dict[str, Any]) -> dict[str, Any]:
    if isinstance(item.get("id"), str):
        return item
    kind = str(item.get("type", "message"))
    return {**item, "type": kind, "id": f"{'msg' if kind == 'message' else 'item'}_{secrets.token_hex(16)}"}


def _all_items(service: Service, fields: ResponsesFields, own: Sequence[Any], caller: Caller) -> list[tuple[str, Any]]:
    """Instructions, what the previous responses hold, and this request's own; references looked up."""
    store, owner = service.responses, caller.organisation
    found: list[tuple[str, Any]] = []
    if fields.instructions:
        message = {"type": "message", "role": "developer", "content": fields.instructions}
        found.append(("instructions", message))
    if fields.previous_response_id is not None:
        for entry in store.chain(owner, fields.previous_response_id, PREVIOUS):
            found += [(PREVIOUS, item) for item in (*entry.input_items(), *entry.output_items())]
    for i, item in enumerate(own):
        if isinstance(item, dict) and item.get("type") == "item_reference":
            item = store.item(owner, str(item.get("id")), f"input.{i}.id")
        found.append((f"input.{i}", item))
    return found


def _json(value: Any, name: str) -> bytes:
    """What will be sent back, as JSON. Raises ApiError 400 for numbers that JSON does not have."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise invalid(f"{name} holds what JSON cannot: {error}", None if " " in name else name) from error
