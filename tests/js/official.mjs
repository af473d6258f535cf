// What the official clients of both protocols make of the server at argv[2], as JSON.
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const url = process.argv[2];
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused" });
const anthropic = new Anthropic({ baseURL: `${url}/anthropic`, apiKey: "unused" });
const schema = { type: "object", properties: { place: { type: "string" }, days: { type: "integer" } }, required: ["place"] };
const described = { name: "get_weather", description: "The weather of a place" };
const question = { role: "user", content: "The weather of San Marino for 3 days?" };
const weather = ({ place, days }) => `${place}: 21 degrees for ${days} days`;

async function failure(ask) {
  try {
    await ask();
    return null;
  } catch (error) {
    return { class: error.constructor.name, status: error.status, id: error.requestID ?? error.request_id };
  }
}

async function chat() {
  const base = { model: "tiny", max_tokens: 400 };
  const stream = openai.chat.completions.stream({ ...base, messages: [{ role: "user", content: "Hello there" }], stream_options: { include_usage: true } });
  const deltas = [];
  stream.on("content", (delta) => deltas.push(delta));
  const done = await stream.finalChatCompletion();
  const runner = openai.chat.completions.runTools({
    ...base,
    stream: true,
    messages: [question],
    tools: [{ type: "function", function: { ...described, parameters: schema, parse: JSON.parse, function: weather } }],
  });
  const calls = [];
  runner.on("functionToolCall", (call) => calls.push([call.name, JSON.parse(call.arguments)]));
  return {
    text: deltas.join(""),
    deltas: deltas.length,
    whole: done.choices[0].message.content,
    finish: done.choices[0].finish_reason,
    used: done.usage.completion_tokens,
    calls,
    end: await runner.finalContent(),
    wrong: await failure(() => openai.chat.completions.create({ ...base, temperature: 7, messages: [question] })),
    retried: (await openai.chat.completions.create({ ...base, messages: [{ role: "user", content: "Hello there" }] }, { headers: { "x-test-failure": "rate/js-openai" } })).choices[0].message.content,
  };
}

async function responses() {
  const stream = openai.responses.stream({
    model: "tiny",
    input: question.content,
    tools: [{ type: "function", ...described, parameters: schema, strict: false }],
  });
  const kinds = [];
  for await (const event of stream) if (kinds.at(-1) !== event.type) kinds.push(event.type);
  const first = await stream.finalResponse();
  const call = first.output.find((item) => item.type === "function_call");
  const result = { type: "function_call_output", call_id: call.call_id, output: weather(JSON.parse(call.arguments)) };
  const last = await openai.responses.create({ model: "tiny", previous_response_id: first.id, input: [result] });
  return { kinds, name: call.name, arguments: JSON.parse(call.arguments), end: last.output_text, status: last.status };
}

async function messages() {
  const base = { model: "tiny", max_tokens: 400 };
  const stream = anthropic.messages.stream({ ...base, messages: [{ role: "user", content: "Hello there" }] });
  const deltas = [];
  stream.on("text", (delta) => deltas.push(delta));
  const done = await stream.finalMessage();
  const tools = [{ ...described, input_schema: schema }];
  const partial = [];
  const asked = anthropic.messages.stream({ ...base, messages: [question], tools });
  asked.on("inputJson", (delta) => partial.push(delta));
  const first = await asked.finalMessage();
  const call = first.content.find((block) => block.type === "tool_use");
  const history = [question, { role: "assistant", content: first.content }, { role: "user", content: [{ type: "tool_result", tool_use_id: call.id, content: weather(call.input) }] }];
  const last = await anthropic.messages.create({ ...base, messages: history, tools });
  return {
    text: deltas.join(""),
    deltas: deltas.length,
    whole: done.content[0].text,
    finish: done.stop_reason,
    used: done.usage.output_tokens,
    calls: [[call.name, call.input]],
    json: JSON.parse(partial.join("")),
    end: last.content[0].text,
    wrong: await failure(() => anthropic.messages.create({ ...base, temperature: 7, messages: [question] })),
    retried: (await anthropic.messages.create({ ...base, messages: [{ role: "user", content: "Hello there" }] }, { headers: { "x-test-failure": "rate/js-anthropic" } })).content[0].text,
  };
}

console.log(JSON.stringify({ chat: await chat(), responses: await responses(), messages: await messages() }));
