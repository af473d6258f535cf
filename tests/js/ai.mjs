// What Vercel's AI SDK makes of the server at argv[2], as JSON.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false; // that it limits the answers of models it does not know to 4096 tokens
const url = process.argv[2];
const openai = createOpenAICompatible({ name: "longsight", baseURL: `${url}/v1`, apiKey: "unused", includeUsage: true, supportsStructuredOutputs: true });
const anthropic = createAnthropic({ baseURL: `${url}/anthropic/v1`, apiKey: "unused" });
const providers = {
  openai: { model: openai("tiny"), thinking: { longsight: { reasoning_split: true } } },
  anthropic: { model: anthropic("tiny"), thinking: { anthropic: { thinking: { type: "enabled", budgetTokens: 1024 } } } },
};
const tools = {
  get_weather: tool({
    description: "The weather of a place",
    inputSchema: z.object({ place: z.string(), days: z.number().int() }),
    execute: async ({ place, days }) => `${place}: 21 degrees for ${days} days`,
  }),
};
const weather = { prompt: "The weather of San Marino for 3 days?", tools, stopWhen: stepCountIs(5) };

const steps = (list) => list.map((s) => ({ finish: s.finishReason, calls: s.toolCalls.map((c) => [c.toolName, c.input]), results: s.toolResults.map((r) => r.output) }));

async function failure(options) {
  try {
    await generateText({ prompt: "Hello there", ...options });
    return null;
  } catch (error) {
    const last = error.lastError ?? error;
    return { status: last.statusCode, retryable: last.isRetryable, message: last.message };
  }
}

async function all(name, { model, thinking }) {
  const whole = await generateText({ model, prompt: "Hello there" });
  const stream = streamText({ model, prompt: "Hello there" });
  const parts = [];
  for await (const text of stream.textStream) parts.push(text);
  const loop = await generateText({ model, ...weather });
  const streamedLoop = streamText({ model, ...weather });
  const kinds = [];
  for await (const part of streamedLoop.fullStream) if (kinds.at(-1) !== part.type) kinds.push(part.type);
  const thought = streamText({ model, prompt: "Show your reasoning.", providerOptions: thinking });
  await thought.consumeStream();
  const object = await generateText({ model, prompt: "The status as JSON", output: Output.object({ schema: z.object({ status: z.string() }) }) });
  const failing = async (failure) => (await generateText({ model, prompt: "Hello there", headers: { "x-test-failure": `${failure}/ai-${name}` } })).text;
  return {
    whole: { text: whole.text, finish: whole.finishReason, used: whole.usage.outputTokens, read: whole.usage.inputTokens },
    stream: { text: parts.join(""), parts: parts.length, finish: await stream.finishReason, used: (await stream.usage).outputTokens },
    loop: { text: loop.text, steps: steps(loop.steps) },
    streamedLoop: { text: await streamedLoop.text, steps: steps(await streamedLoop.steps), kinds },
    thinking: { text: await thought.text, reasoning: await thought.reasoningText },
    object: object.output,
    wrong: await failure({ model, maxOutputTokens: 10_000_000 }),
    final: await failure({ model, headers: { "x-test-failure": `missing/ai-${name}` } }),
    retried: await failing("rate"),
    stubborn: await failing("plan"), // x-should-retry: false, which it does not look at
  };
}

const found = {};
for (const [name, provider] of Object.entries(providers)) found[name] = await all(name, provider);
console.log(JSON.stringify(found));
