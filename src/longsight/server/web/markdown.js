// Markdown on the page: markdown-it and highlight.js in a worker, DOMPurify over what they made, KaTeX for formulas. Texts
// come from a model and grow while they are shown, so the work is bounded: only the newest text of each answer is
// formatted, the worker has a deadline, and what is beyond the budget is shown as plain text.

import { copyButton, eachFrame, h } from "./dom.js";
import { drawFormulas } from "./formulas.js";
import { pause, Slices } from "./slices.js";
import DOMPurify from "./vendor/purify.mjs";

const FORMATTED = 300_000; // characters of an answer
const DEADLINE = 2000; // milliseconds that the worker may take
const REST = 2; // times as long as drawing took, the page is left alone

const ALLOWED = {
  ALLOWED_TAGS: [
    ...["p", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "code", "span", "strong", "em", "s", "a", "br", "hr"],
    ...["table", "thead", "tbody", "tr", "th", "td"],
  ],
  ALLOWED_ATTR: ["href", "class", "start"],
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  RETURN_DOM_FRAGMENT: true,
};
const CLASSES = /^(?:hljs[\w-]*|[\w-]+_|language-[\w+#.-]+|math|display|align-(?:left|right|center))$/;

DOMPurify.addHook("afterSanitizeAttributes", (element) => {
  for (const name of [...element.classList]) if (!CLASSES.test(name)) element.classList.remove(name);
  if (element.localName !== "a") return;
  element.target = "_blank";
  element.rel = "noopener noreferrer";
});

/** The worker, one text at a time. */
class Formatter {
  #worker = null;

  /** The blocks of the text; null if the worker did not manage in time. */
  format(text) {
    this.#worker ??= new Worker(new URL("./markdown-worker.js", import.meta.url), { type: "module" });
    const worker = this.#worker;
    return new Promise((resolve) => {
      const end = (blocks) => {
        clearTimeout(timer);
        if (!blocks) {
          worker.terminate();
          this.#worker = null;
        }
        resolve(blocks);
      };
      let timer = setTimeout(() => end(null), 10 * DEADLINE); // it may still have to load
      worker.onmessage = ({ data }) => {
        if (data.blocks) end(data.blocks);
        else {
          clearTimeout(timer);
          timer = setTimeout(() => end(null), DEADLINE);
        }
      };
      worker.onerror = () => end(null);
      worker.postMessage({ text });
    });
  }
}

const formatter = new Formatter();
const slices = new Slices();
const waiting = new Set(); // texts that have changed since they were drawn
let working = false;

async function work() {
  if (working) return;
  working = true;
  for (const prose of waiting) {
    waiting.delete(prose);
    const text = prose.text;
    const blocks = prose.plain ? null : await formatter.format(text.slice(0, FORMATTED));
    prose.plain ||= !blocks;
    const start = performance.now();
    await prose.draw(blocks ?? [], blocks ? text.slice(FORMATTED) : text);
    await pause(REST * (performance.now() - start));
  }
  working = false;
}

/** One text in `container`, formatted. onDraw is called when it may have grown. */
export class Prose {
  constructor(container, onDraw = () => {}) {
    Object.assign(this, { container, onDraw: eachFrame(onDraw), text: "", plain: false });
  }

  show(text) {
    if (text === this.text) return;
    this.text = text;
    waiting.add(this);
    work();
  }

  /** Blocks that have not changed since the last call stay as they are. */
  async draw(blocks, rest) {
    const all = rest ? [...blocks, { text: rest }] : blocks;
    for (const [i, block] of all.entries()) {
      const old = this.container.children[i];
      const source = block.html ?? `text:${block.text}`;
      if (old?.source === source) continue;
      await slices.turn();
      const element = block.html === undefined ? h("p", { class: "plain" }, block.text) : build(block.html);
      element.source = source;
      if (old) old.replaceWith(element);
      else this.container.append(element);
      if (block.html) drawFormulas(element, this.onDraw);
    }
    while (this.container.children.length > all.length) this.container.lastElementChild.remove();
    this.onDraw();
  }
}

/** The element of one block. */
function build(html) {
  const fragment = DOMPurify.sanitize(html, ALLOWED);
  for (const pre of fragment.querySelectorAll("pre")) pre.replaceWith(codeBlock(pre));
  for (const table of fragment.querySelectorAll("table")) {
    const frame = h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  return fragment.firstElementChild ?? h("p");
}

function codeBlock(pre) {
  const code = pre.querySelector("code") ?? h("code", {}, pre.textContent);
  const language = [...code.classList].find((name) => name.startsWith("language-"))?.slice("language-".length);
  const source = code.textContent;
  const bar = h("div", { class: "bar" }, h("span", {}, language ?? ""), copyButton(() => source));
  return h("div", { class: "code" }, bar, h("pre", { tabindex: "0" }, code));
}
