// The conversation: what has been said, and the request for what comes next.

import { events } from "./api.js";
import { byId } from "./dom.js";
import { AnswerView, userMessage } from "./message.js";
import { showUsage } from "./meter.js";
import { sampling, settings, tools } from "./settings.js";

const log = byId("log");
const composer = byId("composer");
const input = byId("input");
const send = byId("send");
const stop = byId("stop");

export class Chat {
  /** contextLength() of the chosen model; openMicroscope({messages, tools, thinking}) asks the same there. */
  constructor({ contextLength, openMicroscope }) {
    this.contextLength = contextLength;
    this.openMicroscope = openMicroscope;
    this.turns = []; // {role: "user", content, element} or {role: "assistant", view, element}
    this.abort = null;
    this.following = true; // until somebody scrolls up
    log.addEventListener("scroll", () => (this.following = log.scrollHeight - log.scrollTop - log.clientHeight < 40));
    new ResizeObserver(() => this.follow()).observe(log);
    composer.addEventListener("submit", (event) => {
      event.preventDefault();
      this.say();
    });
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.say();
      }
    });
    stop.addEventListener("click", () => this.abort?.abort());
    byId("new-chat").addEventListener("click", () => this.clear());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.abort && !byId("chat").hidden) this.abort.abort();
    });
    this.usage = null;
    this.showContext();
  }

  showContext() {
    showUsage(this.usage, this.contextLength());
  }

  clear() {
    this.abort?.abort();
    this.turns = [];
    log.querySelectorAll(".message").forEach((element) => element.remove());
    this.usage = null;
    this.showContext();
    input.focus();
  }

  say() {
    const content = input.value.trim();
    if (!content || this.abort) return;
    input.value = "";
    this.push({ role: "user", content, element: userMessage(content) });
    this.answer();
  }

  push(turn) {
    this.turns.push(turn);
    log.append(turn.element);
    this.following = true;
    this.follow();
  }

  follow() {
    if (this.following) log.scrollTop = log.scrollHeight;
  }

  /** The protocol's messages of the first `count` turns. */
  messages(count = this.turns.length) {
    const messages = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
    for (const turn of this.turns.slice(0, count)) {
      if (turn.role === "user") messages.push({ role: "user", content: turn.content });
      else messages.push(...spoken(turn.view));
    }
    return messages;
  }

  /** Forgets the answer of `view` and what came after it, and asks again. */
  retry(view) {
    const at = this.turns.findIndex((turn) => turn.view === view);
    if (this.abort || at < 0) return;
    for (const turn of this.turns.splice(at)) turn.element.remove();
    this.answer();
  }

  async answer() {
    const messages = this.messages();
    const asked = { messages };
    const view = new AnswerView({
      onRetry: () => this.retry(view),
      onMicroscope: () => this.openMicroscope(asked),
      onResults: () => !this.abort && this.answer(),
      onDraw: () => this.follow(),
    });
    this.push({ role: "assistant", view, element: view.element });
    const abort = (this.abort = new AbortController());
    this.running(true);
    const outcome = {};
    try {
      const body = this.request(messages);
      Object.assign(asked, { tools: body.tools, thinking: body.thinking });
      for await (const chunk of events("v1/chat/completions", body, abort.signal)) {
        if (chunk.prompt_progress) view.showProgress(chunk.prompt_progress);
        if (chunk.usage) outcome.usage = chunk.usage;
        for (const choice of chunk.choices ?? []) {
          if (choice.delta) view.add(choice.delta);
          outcome.finishReason = choice.finish_reason ?? outcome.finishReason;
        }
      }
    } catch (error) {
      if (error.name === "AbortError") outcome.finishReason = "cancelled";
      else outcome.error = error;
    }
    if (this.abort === abort) this.abort = null;
    view.end(outcome);
    if (outcome.usage && view.element.isConnected) {
      this.usage = outcome.usage;
      this.showContext();
    }
    this.running(Boolean(this.abort));
  }

  request(messages) {
    const body = {
      model: settings.model,
      messages,
      ...sampling(),
      stream: true,
      stream_options: { include_usage: true },
      return_progress: true,
      reasoning_split: true,
    };
    if (settings.thinking) body.thinking = { type: settings.thinking };
    const known = tools();
    if (known) body.tools = known;
    return body;
  }

  running(yes) {
    stop.hidden = !yes;
    send.hidden = yes;
  }
}

/** An answer as the next request repeats it, with what its tools returned. */
function spoken(view) {
  const { content, reasoning, calls } = view.answer;
  if (!content && !calls.length) return [];
  const message = { role: "assistant", content };
  if (reasoning) message.reasoning_content = reasoning;
  if (!calls.length) return [message];
  message.tool_calls = calls.map((call) => ({
    id: call.id,
    type: "function",
    function: { name: call.name, arguments: call.arguments },
  }));
  return [message, ...view.results()];
}
