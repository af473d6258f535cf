"""Run in LiteLLM's own environment: what it makes of the server at argv[1], as JSON."""

import json
import sys

import litellm

litellm.suppress_debug_info = True
URL = sys.argv[1]
PROVIDERS = {"openai": f"{URL}/v1", "anthropic": f"{URL}/anthropic"}
# LiteLLM holds parameters back from models that are not on its list, unless they are allowed by name.
THINKING = {
    "openai": {"extra_body": {"reasoning_split": True}},
    "anthropic": {"thinking": {"type": "enabled", "budget_tokens": 1024}, "allowed_openai_params": ["thinking"]},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["place"],
        },
    },
}


def ask(provider, text, **options):
    messages = options.pop("messages", [{"role": "user", "content": text}])
    return litellm.completion(
        model=f"{provider}/tiny",
        api_base=PROVIDERS[provider],
        api_key="unused",
        messages=messages,
        max_tokens=400,
        **options,
    )


def whole(provider):
    answer = ask(provider, "Hello there")
    usage = answer.usage
    return {
        "text": answer.choices[0].message.content,
        "finish": answer.choices[0].finish_reason,
        "sum": usage.prompt_tokens + usage.completion_tokens - usage.total_tokens,
        "used": usage.completion_tokens,
    }


def stream(provider):
    chunks = list(ask(provider, "Hello there", stream=True, stream_options={"include_usage": True}))
    rebuilt = litellm.stream_chunk_builder(chunks)
    return {
        "text": "".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
        "finish": rebuilt.choices[0].finish_reason,
        "used": rebuilt.usage.completion_tokens,
        "chunks": len(chunks),
    }


def tools(provider, streamed):
    question = [{"role": "user", "content": "The weather of San Marino for 3 days?"}]
    answer = ask(provider, "", messages=question, tools=[TOOL], stream=streamed)
    if streamed:
        answer = litellm.stream_chunk_builder(list(answer))
    first = answer.choices[0]
    (call,) = first.message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}
    history = [*question, first.message.model_dump(exclude_none=True), result]
    last = ask(provider, "", messages=history, tools=[TOOL]).choices[0]
    return {
        "finish": first.finish_reason,
        "name": call.function.name,
        "arguments": json.loads(call.function.arguments),
        "text": last.message.content,
        "end": last.finish_reason,
    }


def thinking(provider):
    answer = ask(provider, "Show your reasoning.", **THINKING[provider])
    message = answer.choices[0].message
    return {"text": message.content, "reasoning": message.reasoning_content}


def failure(provider, **options):
    try:
        ask(provider, "Hello", **options)
    except Exception as error:
        return {"class": type(error).__name__, "status": getattr(error, "status_code", None)}
    return {"class": None}


def retried(provider):
    headers = {"x-test-failure": f"rate/litellm-{provider}"}
    return {"text": ask(provider, "Hello there", num_retries=2, extra_headers=headers).choices[0].message.content}


print(
    json.dumps(
        {
            provider: {
                "whole": whole(provider),
                "stream": stream(provider),
                "tools": tools(provider, False),
                "streamed_tools": tools(provider, True),
                "thinking": thinking(provider),
                "wrong": failure(provider, temperature=7),
                "unknown": failure(provider, messages=[{"role": "wizard", "content": ""}]),
                "retried": retried(provider),
            }
            for provider in PROVIDERS
        }
    )
)
