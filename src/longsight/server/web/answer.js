// An answer on the page: a view of its node of the conversation, also while that grows.

import { BranchSwitch } from "./branches.js";
import { CallCard } from "./calls.js";
import { copyButton, eachFrame, errorBox, h, progressBar, quietButton } from "./dom.js";
import { Prose } from "./markdown.js";
import { notes, promptNote } from "./speed.js";

export class AnswerView {
  /** live: the model is at work on it. onDraw is called when the view may have grown; onResults when what the tools returned has been written down. */
  constructor(node, { live, onRetry, onMicroscope, onResults, onBranch, onDraw }) {
    Object.assign(this, { node, live });
    this.actions = { onRetry, onMicroscope, onResults, onDraw };
    this.branches = new BranchSwitch(onBranch);
    this.progress = progressBar("Reading");
    this.waiting = h("p", { class: "waiting", role: "status" }, "Waiting for the model");
    this.progress.element.hidden = true;
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
      { class: "message assistant", "aria-label": "Model", "aria-busy": live ? "true" : null },
      ...[this.progress.element, this.waiting, this.thinking, this.text, this.calls, this.after, this.footer],
    );
    this.cards = [];
    this.draw = eachFrame(() => this.drawNow());
    this.drawNow();
  }

  setBranch(index, count) {
    this.branches.show(index, count);
  }

  showProgress({ processed, total }) {
    this.waiting.hidden = true;
    this.progress.element.hidden = processed >= total;
    this.progress.set(processed, total);
  }

  drawNow() {
    const { content, reasoning, calls } = this.node;
    const begun = Boolean(content || reasoning || calls.length);
    if (begun || !this.live) this.waiting.hidden = this.progress.element.hidden = true;
    this.thinking.hidden = !reasoning;
    this.thought.textContent = reasoning;
    this.summary.textContent = content || calls.length || !this.live ? "Thoughts" : "Thinking…";
    this.prose.show(content);
    calls.forEach((call, i) => {
      if (!this.cards[i]) this.calls.append((this.cards[i] = new CallCard()).element);
      this.cards[i].show(call);
    });
    if (!this.live && this.footer.hidden) this.close();
    this.actions.onDraw();
  }

  /** The answer is complete, stopped, or has failed. */
  end() {
    this.live = false;
    this.element.removeAttribute("aria-busy");
    this.drawNow();
  }

  close() {
    const { node } = this;
    if (node.error) this.complain(node.error);
    this.footer.replaceChildren(
      this.branches.element,
      copyButton(() => node.content),
      quietButton("Retry", this.actions.onRetry),
      quietButton("Microscope", this.actions.onMicroscope, "See which blocks of the context this answer reads"),
      h("span", { class: "note", title: promptNote(node) }, notes(node).join(" · ")),
    );
    this.footer.hidden = false;
    if (node.done && !node.error && node.finish !== "cancelled" && node.calls.length) this.askForResults();
  }

  complain(error) {
    this.after.append(errorBox(error));
  }

  askForResults() {
    this.cards.forEach((card, i) => card.askForResult(this.node.calls[i]));
    const button = h("button", { type: "button", onclick: () => this.actions.onResults() && button.remove() }, "Send results");
    this.after.append(button);
  }
}
