// One answer while it is generated. It writes into its node of the conversation, whoever looks on.

import { events } from "./api.js";

export class Generation {
  /** onChange() is called when the node has grown, onProgress({processed, total}) while the prompt is read. */
  constructor(conversation, node, { onChange, onProgress }) {
    Object.assign(this, { conversation, node, onChange, onProgress });
    this.abort = new AbortController();
  }

  stop() {
    this.abort.abort();
  }

  /** body() makes the request, and may throw. Until the answer is complete, stopped, or failed: node.finish or node.error
      says which. */
  async run(body) {
    const { node } = this;
    const times = { sent: performance.now(), first: null, last: null };
    try {
      for await (const chunk of events("v1/chat/completions", body(), this.abort.signal)) {
        if (chunk.prompt_progress) this.onProgress(chunk.prompt_progress);
        if (chunk.usage) node.usage = chunk.usage;
        for (const choice of chunk.choices ?? []) {
          if (choice.delta) this.add(choice.delta, times);
          node.finish = choice.finish_reason ?? node.finish;
        }
      }
    } catch (error) {
      if (error.name === "AbortError") node.finish = "cancelled";
      else node.error = { message: error.message, status: error.status, code: error.code, requestId: error.requestId };
    }
    node.calls = node.calls.filter(Boolean);
    node.done = true;
    if (times.first !== null) {
      node.times = { first: times.first - times.sent, rest: times.last - times.first };
    }
    this.onChange();
  }

  add(delta, times) {
    const { node } = this;
    node.reasoning += delta.reasoning_content ?? "";
    node.content += delta.content ?? "";
    for (const part of delta.tool_calls ?? []) {
      const call = (node.calls[part.index ?? 0] ??= { id: "", name: "", arguments: "" });
      call.id = part.id ?? call.id;
      call.name += part.function?.name ?? "";
      call.arguments += part.function?.arguments ?? "";
    }
    if (!delta.reasoning_content && !delta.content && !delta.tool_calls) return;
    times.last = performance.now();
    times.first ??= times.last;
    this.onChange();
  }
}

/** The fields of an answer that has not begun. */
export const emptyAnswer = () => ({ role: "assistant", content: "", reasoning: "", calls: [], done: false });
