"""What the OpenAPI document says of each operation beside its path: parameters, bodies, answers, refusals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from longsight.server.anthropic.fields import MessagesFields
from longsight.server.microscope import MicroscopeFields
from longsight.server.responses.fields import ResponsesFields
from longsight.server.schema import ChatFields, CommonFields, CompletionFields
from longsight.server.tokenize import DetokenizeFields, TokenizeFields

Schema = Mapping[str, Any]
JSON, EVENTS, CSV, BYTES, FORM = (
    "application/json",
    "text/event-stream",
    "text/csv",
    "application/octet-stream",
    "multipart/form-data",
)
TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
KEYED = (401, 403, 503)  # wherever API keys are asked for; 503 when they cannot be looked up
GENERATES = (400, 404, 413, 429, 504)


def record(*required: str, **properties: Schema) -> Schema:
    """An object that has at least these."""
    found: dict[str, Any] = {"type": "object", "required": [*required]}
    if properties:
        found["properties"] = properties
    return found


def listed(of: Schema, *more: str) -> Schema:
    return record("object", "data", *more, object={"const": "list"}, data={"type": "array", "items": of})


@dataclass(frozen=True)
class Operation:
    """answers: of status 200, by content type. body: by content type; a class stands for its own schema. query and
    headers: parameters by name; those in `required` cannot be left out. errors: the statuses of refusals. leads_to:
    operations that take the answer's id."""

    answers: Mapping[str, Schema]
    errors: tuple[int, ...] = KEYED
    body: Mapping[str, Schema | type[BaseModel]] = field(default_factory=dict)
    query: Mapping[str, Schema] = field(default_factory=dict)
    headers: Mapping[str, Schema] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    leads_to: tuple[str, ...] = ()


def generates(fields: type[BaseModel], answer: Schema, *errors: int, leads_to: tuple[str, ...] = ()) -> Operation:
    """A body of these fields, answered whole or as events."""
    return Operation({JSON: answer, EVENTS: {}}, (*KEYED, *GENERATES, *errors), {JSON: fields}, leads_to=leads_to)


def some(*shapes: Schema) -> Schema:
    return {"anyOf": [*shapes]}


def array(of: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": of, "minItems": least}


NULL: Schema = {"type": "null"}
NAME: Schema = {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"}
STRICT = some({"type": "boolean"}, NULL)
FUNCTION = record("name", name=NAME, description=some(TEXT, NULL), parameters=some(record(), NULL), strict=STRICT)


def between(kind: str, low: float, high: float) -> Schema:
    return {"type": [kind, "null"], "minimum": low, "maximum": high}


MOST = 2**31 - 1
POSITIVE: Schema = {"type": ["integer", "null"], "minimum": 1}
THINKING = record("type", type={"enum": ["adaptive", "enabled", "disabled"]})
JSON_SCHEMA = record(
    "type", "json_schema", type={"const": "json_schema"}, json_schema=record("schema", schema=record())
)
FORMAT = some(NULL, record("type", type={"enum": ["text", "json_object"]}), JSON_SCHEMA)
STOP = some(NULL, {"type": "string", "minLength": 1}, array({"type": "string", "minLength": 1}))
CHAT_MESSAGES = array(
    record(
        "role",
        role={"enum": ["system", "developer", "user", "assistant", "tool"]},
        content=some(TEXT, NULL, array(record("type", type={"enum": ["text", "image_url", "video_url"]}))),
        tool_calls=array(record("id", "type", "function", type={"const": "function"}, id=TEXT)),
        tool_call_id=TEXT,
    ),
    1,
)
CHAT_TOOLS = some(NULL, array(record("type", "function", type={"const": "function"}, function=FUNCTION)))
# Fields whose shapes the server checks by hand: what it takes, in outline.
SHAPES: Mapping[type[BaseModel], Mapping[str, Schema]] = {
    CommonFields: {
        "response_format": FORMAT,
        "stop": STOP,
        "max_tokens": POSITIVE,
        "temperature": between("number", 0, 2),
        "top_p": between("number", 0, 1),
        "top_k": between("integer", -1, MOST),
        "min_p": between("number", 0, 1),
        "presence_penalty": between("number", -2, 2),
        "frequency_penalty": between("number", -2, 2),
        "repetition_penalty": between("number", 0.01, 100),
        "n": between("integer", 1, 128),
        "seed": between("integer", -MOST, MOST),
        "min_tokens": between("integer", 0, MOST),
    },
    ChatFields: {
        "max_completion_tokens": POSITIVE,
        "thinking": some(NULL, THINKING),
        "messages": CHAT_MESSAGES,
        "tools": CHAT_TOOLS,
        "tool_choice": some(
            {"enum": [None, "none", "auto", "required"]}, record("type", "function", function=record("name"))
        ),
    },
    TokenizeFields: {"messages": CHAT_MESSAGES, "tools": CHAT_TOOLS, "thinking": some(NULL, THINKING)},
    DetokenizeFields: {"tokens": array({"type": "integer", "minimum": 0})},
    CompletionFields: {"prompt": some(TEXT, array(TEXT, 1), array(COUNT, 1), array(array(COUNT, 1), 1))},
    ResponsesFields: {
        "max_output_tokens": POSITIVE,
        "input": some(TEXT, array(record(type={"type": "string"}, role=TEXT), 1)),
        "tools": some(
            NULL, array(record("type", type={"const": "function"}, name=NAME, parameters=record(), strict=STRICT))
        ),
        "tool_choice": some({"enum": [None, "none", "auto", "required"]}, record("type", type=TEXT)),
    },
    MessagesFields: {
        "max_tokens": POSITIVE,
        "temperature": between("number", 0, 2),
        "top_p": between("number", 0, 1),
        "top_k": between("integer", -1, MOST),
        "thinking": some(NULL, THINKING),
        "messages": array(
            record(
                *("role", "content"),
                role={"enum": ["user", "assistant", "system"]},
                content=some(TEXT, array(record("type", type={"enum": ["text", "image", "tool_result"]}, text=TEXT))),
            ),
            1,
        ),
        "tools": some(NULL, array(record("name", name=NAME, description=TEXT, input_schema=record(), strict=STRICT))),
        "tool_choice": some(NULL, record("type", type={"enum": ["auto", "none", "any", "tool"]}, name=TEXT)),
    },
}

HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 100}
EXAMPLES: Mapping[type[BaseModel], Mapping[str, Any]] = {
    ChatFields: HELLO,
    CompletionFields: {"prompt": "Once upon a time", "max_tokens": 100},
    ResponsesFields: {"input": "Hello", "max_output_tokens": 100},
    MessagesFields: HELLO,
    MicroscopeFields: HELLO,
    TokenizeFields: {"prompt": "Once upon a time"},
    DetokenizeFields: {"tokens": [1, 2, 3]},
}

# Of success too: the native file routes have no other status.
BASE: Schema = record("base_resp", base_resp=record("status_code", "status_msg", status_code=COUNT, status_msg=TEXT))
ERRORS: Mapping[str, Schema] = {
    "openai": record("error", error=record("message", "type", "param", "code", message=TEXT, type=TEXT)),
    "anthropic": record(
        "type", "request_id", "error", type={"const": "error"}, error=record("type", "message", type=TEXT, message=TEXT)
    ),
    "native": BASE,
}

USAGE = record("prompt_tokens", "completion_tokens", "total_tokens", prompt_tokens=COUNT, completion_tokens=COUNT)
CHAT = record(
    *("id", "object", "created", "model", "choices", "usage"),
    object={"const": "chat.completion"},
    choices={
        "type": "array",
        "items": record(
            *("index", "message", "finish_reason"),
            message=record("role", "content"),
            finish_reason={"enum": ["stop", "length", "tool_calls", "content_filter"]},
        ),
    },
    usage=USAGE,
)
COMPLETION = record(
    *("id", "object", "created", "model", "choices", "usage"),
    object={"const": "text_completion"},
    choices={"type": "array", "items": record("index", "text", "finish_reason", "logprobs", text=TEXT)},
    usage=USAGE,
)
RESPONSE = record(
    *("id", "object", "created_at", "status", "model", "output", "usage"),
    object={"const": "response"},
    status={"enum": ["completed", "incomplete", "failed", "in_progress"]},
    output={"type": "array", "items": record("type", "id")},
)
MESSAGE = record(
    *("id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"),
    type={"const": "message"},
    role={"const": "assistant"},
    content=array(record("type", type={"enum": ["text", "thinking", "tool_use"]})),
    stop_reason={"enum": ["end_turn", "max_tokens", "tool_use", "stop_sequence"]},
    usage=record("input_tokens", "output_tokens", input_tokens=COUNT, output_tokens=COUNT),
)
MODEL = record(
    *("id", "object", "created", "owned_by", "context_length", "default_max_tokens"), object={"const": "model"}, id=TEXT
)
ANTHROPIC_MODEL = record("id", "type", "display_name", "created_at", type={"const": "model"}, id=TEXT)
ANTHROPIC_MODELS = record("data", "has_more", "first_id", "last_id", data=array(ANTHROPIC_MODEL))
VERSION: Mapping[str, Schema] = {"anthropic-version": {**TEXT, "description": "asks for the shapes of that protocol"}}
FILE = record("id", "object", "bytes", "created_at", "filename", "purpose", object={"const": "file"}, bytes=COUNT)
NATIVE_FILE = record("file_id", "bytes", "created_at", "filename", "purpose", file_id=COUNT, bytes=COUNT)
PURPOSE: Schema = {"type": "string", "pattern": "^[A-Za-z][A-Za-z0-9_-]{0,63}$"}
UPLOAD = record("file", "purpose", file={"type": "string", "contentMediaType": BYTES}, purpose=PURPOSE)
DELETED = record("id", "object", "deleted", deleted={"const": True})
MICROSCOPE = record("id", "object", "model", "block_size", "prompt_tokens", "tokens", "finish_reason", "usage")
TOKENS = record(
    *("count", "max_model_len", "tokens", "token_strs"),
    count=COUNT,
    max_model_len=COUNT,
    tokens=array(COUNT),
    token_strs=some(array(TEXT), NULL),
)
BLOCKS = listed(record("block", "start", "end", "text", block=COUNT, start=COUNT, end=COUNT, text=TEXT))
ORDER: Schema = {"enum": ["asc", "desc"]}
PERIOD: Mapping[str, Schema] = {
    "group_by": {"type": "string", "description": "one or more of the report's groups, with commas between"},
    "currency": TEXT,
    "from": {"type": "string", "format": "date", "description": "the first day, in UTC"},
    "to": {"type": "string", "format": "date", "description": "the last day, in UTC"},
    "organisation": TEXT,
}


def limit(most: int) -> Schema:
    return {"type": "integer", "minimum": 1, "maximum": most}


MESSAGES = generates(MessagesFields, MESSAGE, 529)
COUNTED = Operation({JSON: record("input_tokens", input_tokens=COUNT)}, (*KEYED, 400, 404, 413), {JSON: MessagesFields})
OPERATIONS: Mapping[str, Operation] = {
    "GET /health": Operation({JSON: record("status", "model")}, (503,)),
    "GET /ready": Operation({JSON: record("status")}, (503,)),
    "GET /metrics": Operation({"text/plain": TEXT, "application/openmetrics-text": TEXT}),
    "GET /v1/models": Operation({JSON: some(listed(MODEL), ANTHROPIC_MODELS)}, headers=VERSION),
    "GET /v1/models/{model}": Operation({JSON: some(MODEL, ANTHROPIC_MODEL)}, (*KEYED, 404), headers=VERSION),
    "GET /anthropic/v1/models": Operation({JSON: ANTHROPIC_MODELS}),
    "GET /anthropic/v1/models/{model}": Operation({JSON: ANTHROPIC_MODEL}, (*KEYED, 404)),
    "POST /v1/chat/completions": generates(ChatFields, CHAT),
    "POST /v1/completions": generates(CompletionFields, COMPLETION),
    "POST /v1/responses": generates(
        ResponsesFields,
        RESPONSE,
        leads_to=(
            "GET /v1/responses/{id}",
            "GET /v1/responses/{id}/input_items",
            "POST /v1/responses/{id}/cancel",
            "DELETE /v1/responses/{id}",
        ),
    ),
    "POST /v1/responses/input_tokens": Operation(
        {JSON: record("object", "input_tokens", input_tokens=COUNT)}, (*KEYED, 400, 404, 413), {JSON: ResponsesFields}
    ),
    "POST /v1/responses/compact": Operation({}, (*KEYED, 404)),
    "GET /v1/responses/{id}": Operation(
        {JSON: RESPONSE}, (*KEYED, 400, 404), query={"stream": {"type": "boolean", "const": False}}
    ),
    "DELETE /v1/responses/{id}": Operation({JSON: DELETED}, (*KEYED, 404)),
    "POST /v1/responses/{id}/cancel": Operation({}, (*KEYED, 400, 404)),
    "GET /v1/responses/{id}/input_items": Operation(
        {JSON: listed(record("type", "id"), "first_id", "last_id", "has_more")},
        (*KEYED, 400, 404),
        query={"limit": limit(100), "order": ORDER, "after": TEXT},
    ),
    "POST /tokenize": Operation({JSON: TOKENS}, (*KEYED, 400, 404, 413, 429), {JSON: TokenizeFields}),
    "POST /detokenize": Operation(
        {JSON: record("prompt", prompt=TEXT)}, (*KEYED, 400, 404, 413, 429), {JSON: DetokenizeFields}
    ),
    **{f"POST {prefix}/v1/messages": MESSAGES for prefix in ("", "/anthropic")},
    **{f"POST {prefix}/v1/messages/count_tokens": COUNTED for prefix in ("", "/anthropic")},
    "POST /v1/files": Operation(
        {JSON: FILE},
        (*KEYED, 400, 404, 413),
        {FORM: UPLOAD},
        leads_to=("GET /v1/files/{id}", "GET /v1/files/{id}/content", "DELETE /v1/files/{id}"),
    ),
    "GET /v1/files": Operation(
        {JSON: listed(FILE, "first_id", "last_id", "has_more")},
        (*KEYED, 400, 404),
        query={"limit": limit(10_000), "order": ORDER, "after": TEXT, "purpose": TEXT},
    ),
    "GET /v1/files/{id}": Operation({JSON: FILE}, (*KEYED, 404)),
    "DELETE /v1/files/{id}": Operation({JSON: DELETED}, (*KEYED, 404)),
    "GET /v1/files/{id}/content": Operation({"*/*": {}}, (*KEYED, 404)),
    "POST /v1/files/upload": Operation({JSON: {**BASE, "properties": {"file": NATIVE_FILE}}}, body={FORM: UPLOAD}),
    "GET /v1/files/list": Operation({JSON: BASE}, query={"purpose": TEXT}, required=("purpose",)),
    "GET /v1/files/retrieve": Operation({JSON: BASE}, query={"file_id": COUNT}, required=("file_id",)),
    "GET /v1/files/retrieve_content": Operation(
        {"*/*": {}, JSON: BASE}, query={"file_id": COUNT}, required=("file_id",)
    ),
    "POST /v1/files/delete": Operation(
        {JSON: BASE}, body={JSON: record("file_id", file_id={"type": ["integer", "string"]}, purpose=TEXT)}
    ),
    "GET /v1/usage": Operation(
        {JSON: record("object", "data", "total", "currency"), CSV: TEXT}, (*KEYED, 400, 404), query=PERIOD
    ),
    "GET /v1/usage.csv": Operation({CSV: TEXT}, (*KEYED, 400, 404), query=PERIOD),
    "POST /v1/longsight/microscope": generates(
        MicroscopeFields, MICROSCOPE, leads_to=("GET /v1/longsight/microscope/{id}/blocks",)
    ),
    "GET /v1/longsight/microscope/{id}/blocks": Operation(
        {JSON: BLOCKS},
        (*KEYED, 400, 404),
        query={"ids": {"type": "string", "description": "numbers of blocks, with commas between"}},
        required=("ids",),
    ),
}
