// "2 / 3" with arrows, where a conversation has branches.

import { h, iconButton } from "./dom.js";

/** onMove(step) is called with -1 or 1. */
export class BranchSwitch {
  constructor(onMove) {
    this.back = iconButton("left", "Earlier version", () => onMove(-1));
    this.on = iconButton("right", "Later version", () => onMove(1));
    this.words = h("span", { class: "note" });
    this.element = h("span", { class: "branches", role: "group", "aria-label": "Versions", hidden: true }, this.back, this.words, this.on);
  }

  /** index of `count` versions, from 0. */
  show(index, count) {
    this.element.hidden = count < 2;
    this.words.textContent = `${index + 1} / ${count}`;
    this.back.disabled = index === 0;
    this.on.disabled = index === count - 1;
  }
}
