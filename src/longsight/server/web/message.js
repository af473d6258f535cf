// One message of the conversation on the page.

import { copyButton, eachFrame, errorBox, grouped, h, progressBar } from "./dom.js";
import { prettyJson } from "./json.js";
import { Prose } from "./markdown.js";

export function userMessage(text) {
  return h("article", { class: "message user", "aria-label": "You" }, h("div", { class: "text plain" }, text));
}

/** An answer while it grows. `answer` is what goes into the conversation: content, reasoning and tool calls. */
export class AnswerView {
  /** onDraw is called when the view may have grown. */
  constructor({ onRetry, onMicroscope, onResults, onDraw }) {
    this.answer = { role: "assistant", content: "", reasoning: "", calls: [] };
    this.actions = { onRetry, onMicroscope, onResults, onDraw };
    this.progress = progressBar("Reading");
    this.progress.element.hidden = true;
    this.waiting = h("p", { class: "waiting", role: "status" }, "Waiting for the model");
    this.thought = h("div", { class: "plain" });
    this.summary = h("summary", {}, "Thinking");
    this.thinking = h("details", { class: "thinking", hidden: true }, this.summary, this.thought);
    this.text = h("div", { class: "text" });
    this.prose = new Prose(this.text, onDraw);
    this.calls = h("div", { class: "calls" });
    this.after = h("div", {});
    this.footer = h("footer", { hidden: true });
    this.element = h(
      "article",
      { class: "message assistant", "aria-label": "Model", "aria-busy": "true" },
      ...[this.progress.element, this.waiting, this.thinking, this.text, this.calls, this.after, this.footer],
    );
    this.cards = [];
    this.draw = eachFrame(() => this.drawNow());
  }

  showProgress({ processed, total }) {
    this.waiting.hidden = true;
    this.progress.element.hidden = processed >= total;
    this.progress.set(processed, total);
  }

  add(delta) {
    const answer = this.answer;
    answer.reasoning += delta.reasoning_content ?? "";
    answer.content += delta.content ?? "";
    for (const part of delta.tool_calls ?? []) {
      const call = (answer.calls[part.index ?? 0] ??= { id: "", name: "", arguments: "" });
      call.id = part.id ?? call.id;
      call.name += part.function?.name ?? "";
      call.arguments += part.function?.arguments ?? "";
    }
    if (delta.reasoning_content || delta.content || delta.tool_calls) {
      this.waiting.hidden = this.progress.element.hidden = true;
    }
    this.draw();
  }

  drawNow() {
    const { content, reasoning, calls } = this.answer;
    this.thinking.hidden = !reasoning;
    this.thought.textContent = reasoning;
    this.summary.textContent = content || calls.length || this.ended ? "Thoughts" : "Thinking…";
    this.prose.show(content);
    calls.forEach((call, i) => {
      if (!this.cards[i]) this.calls.append((this.cards[i] = new CallCard()).element);
      this.cards[i].show(call);
    });
    this.actions.onDraw();
  }

  /** The answer is complete, stopped, or failed with `error`. */
  end({ error, usage, finishReason }) {
    this.ended = true;
    this.waiting.hidden = this.progress.element.hidden = true;
    this.element.removeAttribute("aria-busy");
    this.answer.calls = this.answer.calls.filter(Boolean);
    if (error) this.after.append(errorBox(error));
    const notes = [];
    if (usage) notes.push(`${grouped(usage.completion_tokens)} tokens`);
    if (finishReason === "length") notes.push("cut at the length limit");
    if (finishReason === "cancelled") notes.push("stopped");
    const button = (name, action) => h("button", { type: "button", class: "quiet", onclick: action }, name);
    this.footer.replaceChildren(
      copyButton(() => this.answer.content),
      button("Retry", this.actions.onRetry),
      button("Microscope", this.actions.onMicroscope),
      h("span", { class: "note" }, notes.join(" · ")),
    );
    this.footer.hidden = false;
    if (!error && finishReason !== "cancelled" && this.answer.calls.length) this.askForResults();
    this.drawNow();
  }

  /** The page runs no tools: whoever sits before it says what they return. */
  askForResults() {
    this.drawNow();
    for (const card of this.cards) card.askForResult();
    const send = () => {
      button.remove();
      this.actions.onResults();
    };
    const button = h("button", { type: "button", onclick: send }, "Send results");
    this.after.append(button);
  }

  results() {
    return this.answer.calls.map((call, i) => ({
      role: "tool",
      tool_call_id: call.id,
      content: this.cards[i]?.result?.value || "(no result)",
    }));
  }
}

class CallCard {
  constructor() {
    this.name = h("code", { class: "name" });
    this.json = h("code");
    const head = h("header", {}, "Tool call ", this.name);
    this.element = h("section", { class: "call", "aria-label": "Tool call" }, head, h("pre", { tabindex: "0" }, this.json));
  }

  show(call) {
    this.name.textContent = call.name;
    this.json.textContent = prettyJson(call.arguments);
  }

  askForResult() {
    this.result = h("textarea", { rows: "2", placeholder: "What the tool returns" });
    this.element.append(h("label", {}, "Result", this.result));
  }
}
