"""The Responses protocol as the official client sees it, over a real socket."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_model import FakeModel, ScriptedModel
from live_server import LiveServer, live_server
from longsight.engine import SamplingDefaults
from longsight.model.markup import NAMESPACE as NS
from longsight.server.keys import KeyStore, NewKey
from longsight.server.responses.output import TextArgument
from longsight.server.responses.store import OVERHEAD, ResponseStore, Stored
from longsight.server.signing import Signer, SigningKeyError
from longsight.server.stored_keys import StoredKeys
from longsight.server.usage import UsageRecord

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
PATCH: dict[str, Any] = {"type": "custom", "name": "apply_patch", "description": "Edits files"}
GROUP: dict[str, Any] = {
    "type": "namespace",
    "name": "agents",
    "description": "",
    "tools": [{**WEATHER, "name": "ask"}],
}
TOOLS = [WEATHER, PATCH, GROUP, {"type": "web_search", "external_web_access": False}]


OFF: Any = {"effort": "none"}


def calls(*made: tuple[str, dict[str, str]]) -> str:
    """A block of calls as the model writes it."""
    invokes = "".join(
        f'{NS}<invoke name="{name}">'
        + "".join(f"{NS}<{k}>{v}{NS}</{k}>" for k, v in given.items())
        + f"{NS}</invoke>\n"
        for name, given in made
    )
    return f"{NS}<tool_call>\n{invokes}{NS}</tool_call>"


@contextmanager
def scripted(answer: str | Callable[[str], str], **options: Any) -> Iterator[tuple[LiveServer, openai.OpenAI]]:
    model = ScriptedModel(answer if callable(answer) else lambda _: answer, context=16384)
    options = {"pages": 1024, "chunk_tokens": 2048, "template": None, **options}
    with live_server(model, defaults=SamplingDefaults(temperature=0), **options) as server, server.client() as client:
        yield server, client


def prompts(server: LiveServer) -> list[str]:
    assert isinstance(server.model, ScriptedModel)
    return server.model.prompts


def last_turn(prompt: str) -> str:
    """What stands in the prompt after the system's and developer's turns."""
    return prompt.split("]~b]", 3)[3]


def test_text() -> None:
    with scripted("Hello there.") as (server, client):
        raw = client.responses.with_raw_response.create(model="tiny", input="Hi", instructions="Be brief.")
        response = raw.parse()
        assert "x-longsight-warning" not in raw.headers
        assert response.output_text == "Hello there."
        (item,) = response.output
        assert (item.type, item.status, item.role) == ("message", "completed", "assistant")  # type: ignore[union-attr]
        assert (response.status, response.object, response.model) == ("completed", "response", "tiny")
        assert response.instructions == "Be brief."
        assert "Be brief." in prompts(server)[0]
        assert last_turn(prompts(server)[0]) == "user\nHi[e~[\n]~b]ai\n"
        assert response.usage is not None
        assert response.usage.input_tokens == len(prompts(server)[0].encode())
        assert response.usage.output_tokens == len("Hello there.") + 1  # and the end
        assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
        counted = client.responses.input_tokens.count(model="tiny", input="Hi", instructions="Be brief.")
        assert counted.input_tokens == response.usage.input_tokens
        again = client.responses.create(model="tiny", input="Hi", instructions="Be brief.").usage
        assert again is not None
        assert again.input_tokens_details.cached_tokens > 0


def test_the_asynchronous_client() -> None:
    async def ask(url: str) -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            whole = await client.responses.create(model="tiny", input="Hi")
            stream = await client.responses.create(model="tiny", input="Hi", stream=True)
            text = "".join([e.delta async for e in stream if e.type == "response.output_text.delta"])
            return whole.output_text, text

    with scripted("Hello.") as (server, _):
        assert asyncio.run(ask(server.url)) == ("Hello.", "Hello.")


@pytest.mark.parametrize("summary", [None, "auto"])
def test_thinking_is_an_item_of_its_own(summary: str | None) -> None:
    with scripted("<mm:think>Two and two.</mm:think>Four.") as (server, client):
        response = client.responses.create(
            model="tiny",
            input="2+2?",
            reasoning={"effort": "high", "summary": summary},  # type: ignore[typeddict-item]
        )
        thought, said = response.output
        assert thought.type == "reasoning"
        parts = thought.summary if summary else thought.content
        assert [p.text for p in parts or ()] == ["Two and two."]
        assert thought.encrypted_content is None
        assert response.output_text == "Four."
        assert said.type == "message"
        assert response.usage is not None
        # The markers are several tokens each here, so where the thinking ends is known to a few tokens only.
        reasoning = response.usage.output_tokens_details.reasoning_tokens
        assert len("Two and two.") <= reasoning <= response.usage.output_tokens
        assert "thinking mode: adaptive" in prompts(server)[0]


def test_effort_none_turns_thinking_off() -> None:
    with scripted("Four.") as (server, client):
        response = client.responses.create(model="tiny", input="2+2?", reasoning={"effort": "none"})
        assert [item.type for item in response.output] == ["message"]
        assert "thinking mode: disabled" in prompts(server)[0]


def test_signed_thinking_comes_back_and_foreign_thinking_is_passed_over() -> None:
    with scripted("<mm:think>Secret.</mm:think>Four.") as (server, client):
        options: dict[str, Any] = {"model": "tiny", "include": ["reasoning.encrypted_content"], "store": False}
        first = client.responses.create(input="2+2?", **options)
        thought = first.output[0].model_dump(exclude_none=True)
        assert thought["encrypted_content"]
        # As agents send it back: the blob alone.
        thought.pop("content")

        def prompt(item: dict[str, Any]) -> str:
            said = {"role": "assistant", "content": "Four."}
            client.responses.create(
                input=[{"role": "user", "content": "2+2?"}, item, said, {"role": "user", "content": item["id"]}],
                **options,
            )
            return prompts(server)[-1]

        assert "<mm:think>Secret.</mm:think>Four." in prompt(thought)
        blob = thought["encrypted_content"]
        for i, foreign in enumerate(("gAAAAABforeign", blob[:-8] + "AAAAAAAA", blob + "x", "ls1.!", "")):
            seen = prompt({**thought, "id": f"rs_{i}", "encrypted_content": foreign})
            assert "Secret" not in seen
            assert "</mm:think>Four." in seen


def test_a_tool_loop() -> None:
    def script(prompt: str) -> str:
        found = re.findall("<response>(.*?)</response>", last_turn(prompt))
        if found:
            return f"It is {' and '.join(found)}."
        return "<mm:think>Ask.</mm:think>" + calls(("get_weather", {"city": "Oslo"}), ("get_weather", {"city": "Rome"}))

    with scripted(script) as (server, client):
        items: list[Any] = [{"role": "user", "content": "Weather in Oslo and Rome?"}]
        first = client.responses.create(model="tiny", input=items, tools=TOOLS, store=False)
        made = [item for item in first.output if item.type == "function_call"]
        assert [(c.name, json.loads(c.arguments)) for c in made] == [
            ("get_weather", {"city": "Oslo"}),
            ("get_weather", {"city": "Rome"}),
        ]
        assert len({c.call_id for c in made}) == 2
        items += [item.model_dump(exclude_none=True) for item in first.output]
        # Results in any order, one of them in parts.
        items.append({"type": "function_call_output", "call_id": made[1].call_id, "output": "sun"})
        parts = [{"type": "input_text", "text": "sn"}, {"type": "input_text", "text": "ow"}]
        items.append({"type": "function_call_output", "call_id": made[0].call_id, "output": parts})
        second = client.responses.create(model="tiny", input=items, tools=TOOLS, store=False)
        assert second.output_text == "It is snow and sun."
        assert "<mm:think>Ask.</mm:think>" in prompts(server)[1]


def test_results_that_stand_between_the_calls() -> None:
    """A client that records each call with its result asks for the same prompt as one that doesn't."""
    call = {"type": "function_call", "name": "get_weather", "arguments": '{"city":"Oslo"}'}
    result = {"type": "function_call_output", "output": "snow"}
    one, two = {"call_id": "a"}, {"call_id": "b"}
    with scripted("Fine.") as (server, client):
        for order in (
            [call | one, call | two, result | one, result | two],
            [call | one, call | two, {"role": "developer", "content": "Go on."}, result | two, result | one],
        ):
            client.responses.create(model="tiny", input=[{"role": "user", "content": "x"}, *order], tools=TOOLS)  # type: ignore[list-item]
        assert all(
            prompt.count("<response>snow</response>\n<response>snow</response>") == 1 for prompt in prompts(server)
        )


def test_custom_tools_and_namespaces_are_the_callers_own() -> None:
    patch = '*** "a\\b"\n+é\t😀'
    answer = calls(("apply_patch", {"input": patch}), ("agents.ask", {"city": "Oslo"}))
    with scripted(lambda prompt: "Done." if "<response>" in last_turn(prompt) else answer) as (server, client):
        raw = client.responses.with_raw_response.create(model="tiny", input="x", tools=TOOLS)
        assert (
            raw.headers["x-longsight-warning"] == 'passed over: tools.3 of type "web_search" is not run by this server'
        )
        response = raw.parse()
        custom, inner = response.output
        assert custom.type == "custom_tool_call"
        assert (custom.name, custom.input) == ("apply_patch", patch)
        assert inner.type == "function_call"
        assert (inner.name, inner.namespace) == ("ask", "agents")
        results: list[Any] = [
            {"type": "custom_tool_call_output", "call_id": custom.call_id, "output": "ok"},
            {"type": "function_call_output", "call_id": inner.call_id, "output": "fine"},
        ]
        items = [
            {"role": "user", "content": "x"},
            *(i.model_dump(exclude_none=True) for i in response.output),
            *results,
        ]
        for more in ({"input": items}, {"input": results, "previous_response_id": response.id}):
            assert client.responses.create(model="tiny", tools=TOOLS, **more).output_text == "Done."  # type: ignore[call-overload]
        assert f"{NS}<input>{patch}{NS}</input>" in prompts(server)[1]
        # Both ways of going on come to one prompt.
        assert len(prompts(server)) == 2


def test_allowed_tools_are_the_only_ones_declared() -> None:
    with scripted("ok") as (server, client):
        allowed: Any = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "apply_patch"}]}
        client.responses.create(model="tiny", input="x", tools=TOOLS, tool_choice=allowed)
        assert "apply_patch" in prompts(server)[0]
        assert "get_weather" not in prompts(server)[0]


SCRIPTS = {
    "text": "Hello there, this is an answer of several packets. Ünïcode 😀.",
    "nothing": "",
    "thinking": "<mm:think>\nLet me see.\n\nYes.\n</mm:think>\n\nFour.",
    "thinking only": "<mm:think>Let me see.</mm:think>",
    "call": calls(("get_weather", {"city": 'O"s\\lo\n'})),
    "everything": "<mm:think>Hm.</mm:think>I ask."
    + calls(("get_weather", {"city": "a"}), ("apply_patch", {"input": "é"})),
    "unknown tool": calls(("no_such", {"a": "1"})),
    "other argument": calls(("apply_patch", {"patch": "x"})),
    "cut off": "I ask." + calls(("get_weather", {"city": "Oslo, " * 80})),
    "cut off while thinking": "<mm:think>" + "Hm. " * 100,
}


class Heard:
    """Puts items together from the deltas alone."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def hear(self, event: Any) -> None:
        if event.type.endswith(".delta"):
            self.texts[event.item_id] = self.texts.get(event.item_id, "") + event.delta


def item_text(item: dict[str, Any]) -> str:
    for name in ("arguments", "input"):
        if name in item:
            return str(item[name])
    return "".join(part["text"] for part in [*item.get("content", ()), *item.get("summary", ())])


def without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_ids(v) for k, v in value.items() if k not in ("id", "call_id", "created_at", "completed_at")}
    return [without_ids(v) for v in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def by_name() -> Iterator[tuple[LiveServer, openai.OpenAI]]:
    """A server that says the script whose name it is asked for."""
    with scripted(lambda prompt: SCRIPTS[last_turn(prompt).split("\n")[1].removesuffix("[e~[")]) as found:
        yield found


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("summary", [None, "auto"])
def test_a_streams_deltas_are_its_last_response_and_the_whole_one(
    by_name: tuple[LiveServer, openai.OpenAI], name: str, summary: str | None
) -> None:
    _, client = by_name
    options: dict[str, Any] = {
        "model": "tiny",
        "input": name,
        "tools": TOOLS,
        "max_output_tokens": 300,
        "reasoning": {"summary": summary},
        "include": ["reasoning.encrypted_content"],
    }
    events = list(client.responses.create(stream=True, **options))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    kinds = [e.type for e in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    last = events[-1]
    cut = name.startswith("cut off")
    assert last.type == ("response.incomplete" if cut else "response.completed")
    assert sum(k in ("response.completed", "response.incomplete", "response.failed") for k in kinds) == 1
    output = [item.to_dict() for item in last.response.output]
    assert output

    heard, open_item = Heard(), None
    done: list[dict[str, Any]] = []
    for event in events[2:-1]:
        heard.hear(event)
        if event.type == "response.output_item.added":
            assert open_item is None
            open_item = event.item.id
            assert event.output_index == len(done)
            assert item_text(event.item.to_dict()) == ""
        elif event.type == "response.output_item.done":
            assert event.item.id == open_item
            open_item = None
            done.append(event.item.to_dict())
        else:
            assert (event.item_id, event.output_index) == (open_item, len(done))  # type: ignore[union-attr]
    assert open_item is None
    if name not in ("thinking only", "cut off while thinking"):
        assert done == output
    assert [heard.texts.get(item["id"], "") for item in done] == [item_text(item) for item in done]
    statuses = [item["status"] for item in output]
    assert statuses == ["completed"] * (len(output) - 1) + ["incomplete" if cut else "completed"]

    whole = client.responses.create(**options)
    assert without_ids(whole.to_dict()["output"]) == without_ids(output)
    assert (whole.status, whole.incomplete_details) == (last.response.status, last.response.incomplete_details)
    if cut:
        assert whole.incomplete_details is not None
        assert whole.incomplete_details.reason == "max_output_tokens"
        assert whole.usage is not None
        assert whole.usage.output_tokens == 300


def test_every_frame_names_its_event(by_name: tuple[LiveServer, openai.OpenAI]) -> None:
    body = {"model": "tiny", "input": "everything", "tools": TOOLS, "stream": True}
    text = httpx.post(f"{by_name[0].url}/v1/responses", json=body).text
    frames = [f.split("\n") for f in text.removesuffix("\n\n").split("\n\n")]
    assert len(frames) > 10
    for name, data in frames:
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"


def test_the_clients_own_accumulator_agrees(by_name: tuple[LiveServer, openai.OpenAI]) -> None:
    tools = [WEATHER, PATCH]
    for name in SCRIPTS:
        with by_name[1].responses.stream(model="tiny", input=name, tools=tools, max_output_tokens=900) as stream:  # type: ignore[arg-type]
            for event in stream:
                if event.type == "response.output_text.delta":
                    assert event.snapshot.endswith(event.delta)
            final = stream.get_final_response()
        assert final.status == "completed"


@given(text=st.text(), cuts=st.lists(st.integers(0, 200)), ascii=st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_custom_tools_text_wherever_its_json_is_cut(text: str, cuts: list[int], ascii: bool) -> None:
    whole = json.dumps({"input": text}, ensure_ascii=ascii)
    places = [0, *sorted(c for c in cuts if c < len(whole)), len(whole)]
    argument = TextArgument()
    told = [argument.push(whole[a:b]) for a, b in pairwise(places)]
    assert "".join(told) + argument.finish(whole) == argument.text == text


def test_going_on_from_a_stored_response() -> None:
    with scripted(lambda prompt: f"Answer {prompt.count(']~b]ai')}.") as (server, client):
        first = client.responses.create(model="tiny", input="One", instructions="Once.")
        second = client.responses.create(model="tiny", input="Two", previous_response_id=first.id)
        third = client.responses.create(model="tiny", input="Three", previous_response_id=second.id)
        assert (second.output_text, third.output_text) == ("Answer 2.", "Answer 3.")
        assert third.previous_response_id == second.id
        seen = prompts(server)[-1]
        assert "Once." not in seen
        said = re.findall("user\n(.*?)\\[e~|ai\n</mm:think>(.*?)\\[e~", last_turn(seen))
        assert [a or b for a, b in said] == ["One", "Answer 1.", "Two", "Answer 2.", "Three"]

        assert client.responses.retrieve(second.id).to_dict() == second.to_dict()
        (item,) = client.responses.input_items.list(second.id).data
        assert item.content[0].text == "Two"  # type: ignore[union-attr]
        with pytest.raises(openai.BadRequestError, match="not in the background"):
            client.responses.cancel(second.id)
        client.responses.delete(second.id)
        for call in (client.responses.retrieve, client.responses.cancel, client.responses.delete):
            with pytest.raises(openai.NotFoundError, match="no stored response"):
                call(second.id)
        for gone in (second.id, third.id):
            with pytest.raises(openai.NotFoundError) as caught:
                client.responses.create(model="tiny", input="Four", previous_response_id=gone)
            assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")


def test_a_response_not_stored_is_not_there() -> None:
    with scripted("ok") as (_, client):
        response = client.responses.create(model="tiny", input="x", store=False)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response.id)


def test_a_response_is_its_organisations_own(tmp_path: Path) -> None:
    with closing(KeyStore(str(tmp_path / "keys.db"), create=True)) as keys:
        one, colleague, stranger = (keys.create(NewKey(name, name[0]))[1] for name in ("ann", "alf", "bob"))
        with scripted("ok", authenticator=StoredKeys(keys)) as (_, client):
            id = client.with_options(api_key=one).responses.create(model="tiny", input="x").id
            client.with_options(api_key=colleague).responses.create(model="tiny", input="y", previous_response_id=id)
            other = client.with_options(api_key=stranger).responses
            with pytest.raises(openai.NotFoundError):
                other.create(model="tiny", input="y", previous_response_id=id)
            for call in (other.retrieve, other.delete, other.input_items.list):
                with pytest.raises(openai.NotFoundError):
                    call(id)
            assert client.with_options(api_key=one).responses.retrieve(id).id == id


def test_a_call_can_be_demanded() -> None:
    pytest.importorskip("longsight.chat.grammar", reason="grammars of tool calls are not part of this build")
    units: dict[str, Any] = {"unit": {"type": "string", "enum": ["C", "F"]}}
    tools: Any = [
        {"type": "function", "name": name, "parameters": {"type": "object", "properties": units, "required": ["unit"]}}
        for name in ("one", "two")
    ]
    choices: list[tuple[Any, set[str]]] = [
        ("required", {"one", "two"}),
        ({"type": "function", "name": "two"}, {"two"}),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "one"}]}, {"one"}),
    ]
    with scripted("I will not.") as (_, client):
        for choice, names in choices:
            response = client.responses.create(
                model="tiny", input="x", tools=tools, tool_choice=choice, parallel_tool_calls=False, reasoning=OFF
            )
            (call,) = [item for item in response.output if item.type != "message"]
            assert call.type == "function_call"
            assert call.name in names
            assert json.loads(call.arguments)["unit"] in ("C", "F")


def test_a_strict_tool_is_held_to_its_schema() -> None:
    parameters = {
        "type": "object",
        "properties": {"unit": {"type": "string", "enum": ["C", "F"]}},
        "required": ["unit"],
    }
    with scripted(calls(("one", {"unit": "K"}))) as (_, client):
        for strict, heard in ((True, "CF"), (False, "K"), (None, "K")):
            tools: Any = [{"type": "function", "name": "one", "parameters": parameters, "strict": strict}]
            (call,) = client.responses.create(model="tiny", input="x", tools=tools).output
            assert call.type == "function_call"
            assert json.loads(call.arguments)["unit"] in heard
        with pytest.raises(openai.BadRequestError, match=r"tools\.0\.strict is 'no'; it must be true or false"):
            client.responses.create(model="tiny", input="x", tools=[{**tools[0], "strict": "no"}])


def test_items_by_reference() -> None:
    script = lambda prompt: "Cold." if "<response>" in last_turn(prompt) else calls(("get_weather", {"city": "Oslo"}))  # noqa: E731
    with scripted(script) as (_, client):
        first = client.responses.create(model="tiny", input="x", tools=TOOLS)
        (call,) = first.output
        assert call.type == "function_call"
        items: list[Any] = [
            {"role": "user", "content": "x"},
            {"type": "item_reference", "id": call.id},
            {"type": "function_call_output", "call_id": call.call_id, "output": "-3"},
        ]
        assert client.responses.create(model="tiny", input=items, tools=TOOLS).output_text == "Cold."
        items[1]["id"] = "fc_unknown"
        with pytest.raises(openai.NotFoundError, match=re.escape("input.1.id refers to 'fc_unknown'")):
            client.responses.create(model="tiny", input=items, tools=TOOLS)


def test_pages_of_input_items() -> None:
    with scripted("ok") as (server, client):
        items: list[Any] = [{"role": "user", "content": str(i), "type": "message", "id": f"msg_{i}"} for i in range(5)]
        response = client.responses.create(model="tiny", input=items)
        pages = client.responses.input_items.list(response.id, limit=2, order="asc")
        assert pages.has_more
        assert [item.id for item in pages] == [f"msg_{i}" for i in range(5)]  # all pages
        assert client.responses.input_items.list(response.id).data[0].id == "msg_4"
        for query in ("limit=0", "limit=x", "order=up", "after=msg_9"):
            assert httpx.get(f"{server.url}/v1/responses/{response.id}/input_items?{query}").status_code == 400


def entry(id: str, size: int = 100, owner: str = "a", previous: str | None = None) -> Stored:
    return Stored(id, owner, previous, b"x" * size, b"")


def test_the_store_is_bounded_and_forgets_the_longest_unused() -> None:
    store = ResponseStore(max_bytes=3 * (100 + OVERHEAD), max_count=3)
    for id in "abc":
        assert store.put(entry(id))
    store.get("a", "a")
    store.put(entry("d"))
    with pytest.raises(Exception, match="no stored response 'b'"):
        store.get("a", "b")
    assert [store.get("a", id).id for id in "acd"] == ["a", "c", "d"]
    assert not store.put(entry("huge", 10**6))
    assert len(store) == 3
    store.put(entry("e", 200 + OVERHEAD))
    assert store.bytes <= store.max_bytes
    assert len(store) == 2
    with pytest.raises(Exception, match="no stored response 'e'"):
        store.get("another", "e")


def test_a_chain_in_use_keeps_its_beginning() -> None:
    store = ResponseStore(max_count=3)
    store.put(entry("a"))
    store.put(entry("b", previous="a"))
    assert [e.id for e in store.chain("a", "b", "p")] == ["a", "b"]
    store.put(entry("other"))
    store.put(entry("new"))
    assert store.get("a", "a").id == "a"


def test_signing_keys(tmp_path: Path) -> None:
    path = tmp_path / "key"
    blob = Signer.from_file(path).seal("Thought \ud800")
    assert path.stat().st_mode & 0o777 == 0o600
    assert Signer.from_file(path).unseal(blob) == "Thought \ud800"
    assert Signer().unseal(blob) is None
    path.write_bytes(b"short")
    with pytest.raises(SigningKeyError, match="holds 5 bytes"):
        Signer.from_file(path)
    with pytest.raises(SigningKeyError, match="cannot use"):
        Signer.from_file(tmp_path / "no" / "key")


def test_structured_answers() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["on", "off"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    with scripted("x") as (_, client):
        text = {"format": {"type": "json_schema", "name": "x", "strict": True, "schema": schema}}
        response = client.responses.create(model="tiny", input="x", text=text, reasoning={"effort": "none"})  # type: ignore[arg-type]
        assert json.loads(response.output_text)["a"] in ("on", "off")


def test_what_is_not_known_is_passed_over() -> None:
    items: list[Any] = [
        {"type": "compaction", "encrypted_content": "x"},
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}, {"type": "hologram", "x": 1}]},
        {"type": "function_call", "call_id": "a", "name": "get_weather", "arguments": '{"ci', "status": "incomplete"},
    ]
    extra = {"client_metadata": {"a": 1}, "prompt_cache_key": "k", "verbosity": 3, "service_tier": "flex"}
    tools: list[Any] = [*TOOLS, {"type": "local_shell"}, {"type": "ünknown\n"}]
    with scripted("ok") as (_, client):
        raw = client.responses.with_raw_response.create(
            model="tiny",
            input=items,
            tools=tools,
            include=["no.such"],
            extra_body=extra,  # type: ignore[list-item]
        )
        assert raw.parse().output_text == "ok"
    for words in ("web_search", "local_shell", "nknown", 'input.0 of type "compaction"', "hologram", "cut off"):
        assert words in raw.headers["x-longsight-warning"]


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"input": None}, "input", "input is null"),
    ({"input": []}, "input", "at least one item"),
    ({"input": 5}, "input", "input is 5"),
    ({"input": ["x"]}, "input.0", 'input.0 is "x"'),
    ({"input": [{"role": "wizard", "content": ""}]}, "input.0.role", "system, developer, user"),
    ({"input": [{"role": "user", "content": 5}]}, "input.0.content", "is 5"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0", "reads text only"),
    ({"input": [{"role": "user", "content": [5]}]}, "input.0.content.0", "is 5"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.0.content.0.text", "null"),
    ({"input": [{"type": "function_call", "name": "x"}]}, "input.0.call_id", "must be a string"),
    (
        {"input": [{"type": "function_call", "call_id": "a", "name": "x", "arguments": "{"}]},
        "input.0.arguments",
        "not valid JSON",
    ),
    ({"input": [{"type": "function_call", "call_id": "a", "name": "x", "arguments": "{}"}]}, "input.0", "'a'"),
    ({"input": [{"type": "function_call_output", "call_id": "a", "output": "x"}]}, "input.0", "'a'"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0.call_id", "null"),
    ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens is 0"),
    ({"temperature": 3}, "temperature", "from 0 to 2"),
    ({"n": 2}, "n", "one answer"),
    ({"tools": [5]}, "tools.0", "tools.0 is 5"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools.0.name", "white space"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "no"}}, "tool_choice", "get_weather"),
    ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice", 'tool_choice is "maybe"'),
    ({"tool_choice": "required"}, "tool_choice", "no tools are declared"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "tools": 5}}, "tool_choice.tools", "is 5"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "x"}}, "tool_choice.mode", "auto or required"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", "json_schema"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", "must be an object"),
    ({"background": True}, "background", "does not support"),
    ({"conversation": "c"}, "conversation", "does not support"),
    ({"reasoning": {"effort": 3}}, "reasoning.effort", "valid string"),
    ({"stream": "yes"}, "stream", "valid boolean"),
]


def test_bad_values_are_named() -> None:
    with scripted("ok") as (server, client):
        for body, param, words in BAD:
            with pytest.raises(openai.BadRequestError) as caught:
                client.post("/responses", body={"model": "tiny", "input": "x", **body}, cast_to=object)
            assert (caught.value.param, caught.value.type) == (param, "invalid_request_error"), body
            assert words in caught.value.message, body
        nan = b'{"model": "tiny", "input": "x", "metadata": {"a": NaN}}'
        assert httpx.post(f"{server.url}/v1/responses", content=nan).status_code == 400  # it would be sent back
        with pytest.raises(openai.NotFoundError, match="'gpt-9' does not exist"):
            client.responses.create(model="gpt-9", input="x")
        with pytest.raises(openai.BadRequestError) as long:
            client.responses.create(model="tiny", input="x" * 20000)
        assert long.value.code == "context_length_exceeded"
        assert client.responses.create(model="tiny", input="x").output_text == "ok"


def test_a_failure_on_the_way_is_the_last_event() -> None:
    class Breaks(ScriptedModel):
        def next(self, context: list[int]) -> int:
            if bytes(t for t in context[-3:] if t < 250) == b"Hel":
                raise RuntimeError("the network is down")
            return super().next(context)

    model = Breaks(lambda _: "Hello", context=8192)
    with live_server(model, pages=512, template=None, defaults=SamplingDefaults(temperature=0)) as server:
        with server.client() as client:
            *_, last = client.responses.create(model="tiny", input="x", stream=True)
            assert last.type == "response.failed"
            assert last.response.status == "failed"
            assert last.response.error is not None
            assert last.response.error.code == "server_error"
            with pytest.raises(openai.InternalServerError):
                client.responses.create(model="tiny", input="x")
            with pytest.raises(openai.NotFoundError):
                client.responses.retrieve(last.response.id)
        server.wait_until_idle()


def test_a_quiet_stream_says_that_it_lives() -> None:
    with live_server(FakeModel(seconds=0.3), pages=512, keep_alive=0.05) as server:
        body = {"model": "tiny", "input": "x", "stream": True, "max_output_tokens": 3, "temperature": 0}
        text = httpx.post(f"{server.url}/v1/responses", json=body, timeout=30).text
    assert ": keep-alive\n\n" in text
    assert text.count("event: response.incomplete\n") == 1


def test_a_client_that_leaves_frees_its_request_and_is_recorded() -> None:
    records: list[UsageRecord] = []
    model = FakeModel(seconds=0.02)
    with live_server(model, pages=512, observers=[records.append]) as server:
        body = {"model": "tiny", "input": "x", "stream": True, "max_output_tokens": 2000}
        with httpx.stream("POST", f"{server.url}/v1/responses", json=body, timeout=30) as response:
            for line in response.iter_lines():
                if "output_text.delta" in line:
                    break
        server.wait_until_idle()
        with server.client() as client:
            client.responses.create(model="tiny", input="x", max_output_tokens=3)
    assert [(r.dialect, r.endpoint, r.status) for r in records] == [
        ("responses", "/v1/responses", "cancelled"),
        ("responses", "/v1/responses", "ok"),
    ]
    assert records[1].completion_tokens == 3
