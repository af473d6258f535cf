// A message of the user on the page, which can be edited.

import { fileChip } from "./attachments.js";
import { BranchSwitch } from "./branches.js";
import { copyButton, grouped, h, quietButton } from "./dom.js";

const SHOWN = 1200; // characters of a long message, until somebody asks for all of them

export class UserView {
  /** onEdit(content, files) sends another version of the message. */
  constructor(node, { onEdit, onBranch }) {
    Object.assign(this, { node, onEdit });
    this.branches = new BranchSwitch(onBranch);
    this.element = h("article", { class: "message user", "aria-label": "You" });
    this.read();
  }

  setBranch(index, count) {
    this.branches.show(index, count);
  }

  read() {
    const { content, files = [] } = this.node;
    const parts = [];
    if (files.length) parts.push(h("div", { class: "chips" }, ...files.map((file) => fileChip(file))));
    if (content) parts.push(longText(content));
    const edit = quietButton("Edit", () => this.edit());
    const footer = h("footer", {}, this.branches.element, edit, copyButton(() => content || files[0]?.text || ""));
    this.element.replaceChildren(...parts, footer);
  }

  edit() {
    const field = h("textarea", { rows: "3", "aria-label": "Edit the message" });
    field.value = this.node.content;
    let files = this.node.files ?? [];
    const chips = h("div", { class: "chips" });
    const showFiles = () =>
      chips.replaceChildren(
        ...files.map((file) =>
          fileChip(file, {
            onRemove: () => {
              files = files.filter((other) => other !== file);
              showFiles();
            },
          }),
        ),
      );
    showFiles();
    const back = () => {
      this.read();
      this.element.querySelector("footer button:not([disabled])")?.focus();
    };
    const send = () => {
      const content = field.value.trim();
      if ((content || files.length) && this.onEdit(content, files)) this.read();
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        back();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      }
    });
    const cancel = h("button", { type: "button", onclick: back }, "Cancel");
    const save = h("button", { type: "button", class: "primary", onclick: send }, "Send");
    const note = h("span", { class: "note" }, "Sends another version; the one before is kept.");
    this.element.replaceChildren(h("div", { class: "editor" }, chips, field, h("div", { class: "row" }, note, cancel, save)));
    field.style.height = `${Math.min(field.scrollHeight + 4, innerHeight * 0.5)}px`;
    field.focus();
  }
}

function longText(content) {
  const text = h("div", { class: "text plain" });
  if (content.length <= SHOWN * 1.5) {
    text.append(content);
    return text;
  }
  const frame = h("div", { class: "long" }, text);
  const button = h("button", { type: "button", class: "quiet" });
  const show = (whole) => {
    text.textContent = whole ? content : `${content.slice(0, SHOWN)}…`;
    button.textContent = whole ? "Show less" : `Show all ${grouped(content.length)} characters`;
    button.setAttribute("aria-expanded", String(whole));
  };
  button.addEventListener("click", () => show(button.getAttribute("aria-expanded") !== "true"));
  show(false);
  frame.append(button);
  return frame;
}
