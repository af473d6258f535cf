// A tool call of an answer: its arguments while they are written, and a field for what the tool returns.

import { h } from "./dom.js";
import { prettyJson } from "./json.js";

export class CallCard {
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

  /** The page runs no tools: whoever sits before it says what they return. */
  askForResult(call) {
    const field = h("textarea", { rows: "2", placeholder: "What the tool returns" });
    field.value = call.result ?? "";
    field.addEventListener("input", () => (call.result = field.value));
    this.element.append(h("label", {}, "Result", field));
  }
}
