// The attention microscope: runs a prompt, shows the answer's tokens, and for the chosen one what each layer read.

import { events } from "./api.js";
import { BlockTexts } from "./blocktexts.js";
import { byId, errorBox, grouped, h, progressBar } from "./dom.js";
import { Grid } from "./grid.js";
import { needlePrompt } from "./needle.js";
import { settings } from "./settings.js";

const NEEDLE_CHARACTERS = 48_000;
const LISTED = 48; // blocks in the list of what was read
const form = byId("scope-form");
const prompt = byId("scope-prompt");
const strip = byId("strip");
const slider = byId("token-slider");
const tooltip = byId("tooltip");
const canvas = byId("grid");

export class Scope {
  /** builtIn() names the built-in model that is served, if it is one; contextLength() is in tokens. */
  constructor({ builtIn, contextLength }) {
    Object.assign(this, { builtIn, contextLength });
    this.conversation = null; // {messages, tools, thinking} from the chat, in place of the text field
    this.needle = null; // the example in the text field: {text, sentence, depth}
    this.tokens = [];
    this.chosen = -1;
    this.grid = new Grid(
      canvas,
      { read: byId("swatch-read"), others: byId("swatch-others"), unread: byId("swatch-unread") },
      {
        onPoint: (place, event) => this.hover(place, event),
        onPick: (place) => this.pin(place.block),
        onZoom: (from, to) => this.showRange(from, to),
      },
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    byId("scope-stop").addEventListener("click", () => this.abort?.abort());
    byId("scope-needle").addEventListener("click", () => this.showNeedle());
    byId("scope-file").addEventListener("change", (event) => this.loadFile(event.target));
    byId("scope-drop").addEventListener("click", () => this.setConversation(null));
    byId("zoom-in").addEventListener("click", () => this.grid.zoomBy(0.5));
    byId("zoom-out").addEventListener("click", () => this.grid.zoomBy(2));
    byId("zoom-all").addEventListener("click", () => this.grid.zoom(0, this.grid.blocks));
    slider.addEventListener("input", () => this.choose(Number(slider.value)));
    strip.addEventListener("keydown", (event) => this.stripKey(event));
    strip.addEventListener("click", (event) => {
      const token = event.target.closest("button");
      if (token) this.choose(Number(token.dataset.index));
    });
  }

  setText(text) {
    this.setConversation(null);
    prompt.value = text;
    prompt.scrollTop = prompt.scrollHeight;
  }

  showNeedle() {
    // The embedded model converses; others are asked as the form says.
    if (this.builtIn() === "embedded") form.elements.kind.value = "chat";
    // It fits whatever the tokenizer is like: no token is less than a character.
    const characters = Math.min(NEEDLE_CHARACTERS, 0.6 * (this.contextLength() ?? Infinity));
    const needle = needlePrompt(characters, { chat: form.elements.kind.value === "chat" });
    this.setText(needle.text);
    this.needle = needle;
  }

  async loadFile(field) {
    const [file] = field.files;
    if (file) this.setText(await file.text());
    field.value = "";
  }

  /** Looks at the answer to this conversation; null goes back to the text field. */
  setConversation(conversation) {
    this.conversation = conversation;
    byId("scope-text").hidden = conversation !== null;
    byId("scope-conversation").hidden = conversation === null;
    const n = conversation?.messages.length;
    byId("scope-count").textContent = `The conversation, ${n} message${n === 1 ? "" : "s"}`;
  }

  /** Looks at the answer to this conversation at once, whatever is looked at now. */
  async look(conversation) {
    this.abort?.abort();
    await this.finished;
    this.setConversation(conversation);
    await this.run();
  }

  request() {
    const body = {
      model: settings.model,
      stream: true,
      max_tokens: Number(form.elements.tokens.value),
      temperature: Number(form.elements.heat.value),
    };
    if (this.conversation) return { ...body, ...this.conversation };
    if (form.elements.kind.value === "text") return { ...body, prompt: prompt.value };
    return { ...body, messages: [{ role: "user", content: prompt.value }] };
  }

  run() {
    if (this.abort) return this.finished;
    if (!this.conversation && !prompt.value) {
      byId("scope-status").replaceChildren(h("p", { class: "note" }, "Write or open a text first, or take the needle example."));
      prompt.focus();
      return undefined;
    }
    this.finished = this.runNow();
    return this.finished;
  }

  async runNow() {
    this.reset();
    const abort = (this.abort = new AbortController());
    const progress = progressBar("Reading");
    const status = byId("scope-status");
    status.replaceChildren(progress.element);
    this.running(true);
    try {
      for await (const event of events("v1/longsight/microscope", this.request(), abort.signal)) {
        if (event.type === "start") this.start(event);
        else if (event.type === "progress") progress.set(event.processed, event.total);
        else if (event.type === "token") this.add(event);
        else if (event.type === "end") {
          status.replaceChildren();
          this.listRead();
        }
      }
    } catch (error) {
      if (error.name === "AbortError") status.replaceChildren(h("p", { class: "note" }, "Stopped."));
      else status.replaceChildren(errorBox(error, () => this.run()));
    }
    this.abort = null;
    this.running(false);
  }

  reset() {
    this.tokens = [];
    this.chosen = -1;
    this.texts = this.opening = this.pinned = null;
    this.grid.clear();
    strip.replaceChildren();
    byId("scope-result").hidden = true;
    byId("block-text").hidden = true;
    byId("needle-note").hidden = byId("needle-legend").hidden = true;
    this.hover(null);
  }

  running(yes) {
    byId("scope-run").hidden = yes;
    byId("scope-stop").hidden = !yes;
  }

  start(event) {
    this.opening = event;
    this.texts = new BlockTexts(event.id);
    if (this.needle && !this.conversation && prompt.value === this.needle.text) this.markNeedle(this.needle);
  }

  async markNeedle({ sentence, depth }) {
    const { texts, opening } = this;
    const blocks = Math.ceil(opening.prompt_tokens / opening.block_size);
    let found = [];
    try {
      found = await texts.find(sentence, Math.floor(depth * blocks), blocks);
    } catch {
      // The texts cannot be had; the microscope's own errors say why.
    }
    if (texts !== this.texts || !found.length) return;
    this.grid.mark(found);
    if (this.chosen >= 0) this.listRead();
  }

  add(token) {
    this.tokens.push(token);
    const { prompt_tokens: read, block_size: size } = this.opening;
    const last = Math.floor((read + token.index) / size);
    if (last < this.grid.blocks) this.texts.forget(last);
    this.grid.addToken(token.selections);
    this.grid.setSize(last + 1, size);
    const text = visible(token.text);
    strip.append(
      h("button", { type: "button", role: "option", "data-index": token.index, tabindex: "-1", "aria-selected": "false" }, text),
    );
    slider.max = this.tokens.length - 1;
    if (token.index === 0) {
      byId("scope-result").hidden = false;
      this.choose(0);
      this.showRange(0, this.grid.blocks);
    }
    this.caption();
  }

  choose(index) {
    if (!this.tokens[index]) return;
    const old = strip.children[this.chosen];
    old?.setAttribute("aria-selected", "false");
    old?.setAttribute("tabindex", "-1");
    this.chosen = index;
    const button = strip.children[index];
    button.setAttribute("aria-selected", "true");
    button.setAttribute("tabindex", "0");
    const above = button.offsetTop - strip.offsetTop;
    if (above < strip.scrollTop || above + button.offsetHeight > strip.scrollTop + strip.clientHeight) {
      strip.scrollTop = above - strip.clientHeight / 2;
    }
    slider.value = index;
    this.grid.choose(this.tokens[index].selections);
    this.caption();
    this.listRead();
  }

  caption() {
    const token = this.tokens[this.chosen];
    const words = `Token ${this.chosen + 1} of ${this.tokens.length}, ${quoted(token.text)}`;
    byId("token-caption").textContent = words;
    slider.setAttribute("aria-valuetext", words);
  }

  /** The blocks that the chosen token read: those read in most layers and groups first, then those the whole answer
      read most often. */
  listRead() {
    const counts = new Map();
    for (const { blocks } of this.tokens[this.chosen].selections) {
      for (const block of blocks.flat()) counts.set(block, (counts.get(block) ?? 0) + 1);
    }
    const lanes = this.grid.lanes.length;
    const often = (block) => this.grid.timesRead(block);
    const list = [...counts].sort((a, b) => b[1] - a[1] || often(b[0]) - often(a[0]) || a[0] - b[0]);
    byId("read-count").textContent = `It read ${grouped(list.length)} of ${grouped(this.grid.blocks)} blocks`;
    byId("read-list").replaceChildren(
      ...list.slice(0, LISTED).map(([block, n]) =>
        h(
          "button",
          {
            type: "button",
            "data-block": block,
            "aria-pressed": String(block === this.pinned),
            class: this.grid.marked.includes(block) ? "marked" : null,
            title: `read in ${n} of ${lanes} layers and groups`,
            onclick: () => this.pin(block),
          },
          grouped(block),
          h("small", {}, ` ${n}/${lanes}`),
          this.grid.marked.includes(block) ? " needle" : "",
        ),
      ),
    );
    this.tellNeedle();
    if (list.length > LISTED) byId("read-list").append(h("span", { class: "note" }, `and ${list.length - LISTED} more`));
  }

  tellNeedle() {
    const { marked, lanes } = this.grid;
    byId("needle-note").hidden = byId("needle-legend").hidden = !marked.length;
    if (!marked.length) return;
    const names = marked.map(grouped).join(" and ");
    const read = new Set(marked.flatMap((block) => this.grid.lanesOf(block))).size;
    const place = `The needle lies in block${marked.length > 1 ? "s" : ""} ${names}.`;
    byId("needle-note").textContent = `${place} This token read it in ${read} of ${lanes.length} layers and groups.`;
  }

  showRange(from, to) {
    const size = this.grid.blockSize;
    const [a, b] = [Math.floor(from), Math.ceil(to)];
    byId("range").textContent = `blocks ${grouped(a)} to ${grouped(b - 1)}, tokens ${grouped(a * size)} to ${grouped(b * size - 1)}`;
    const whole = from === 0 && to === this.grid.blocks;
    byId("zoom-all").disabled = byId("zoom-out").disabled = whole;
  }

  stripKey(event) {
    const to = {
      ArrowRight: this.chosen + 1,
      ArrowLeft: this.chosen - 1,
      Home: 0,
      End: this.tokens.length - 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.choose(to);
    strip.children[this.chosen]?.focus();
  }

  describe(block) {
    const names = this.grid.lanesOf(block).map(({ layer, group }) => `layer ${layer} group ${group}`);
    const more = names.length > 4 ? ` and ${names.length - 4} more` : "";
    return names.length ? `read by ${names.slice(0, 4).join(", ")}${more}` : "not read for this token";
  }

  async hover(place, event) {
    this.hovered = place?.block ?? null;
    if (!place || !this.texts) {
      tooltip.hidden = true;
      return;
    }
    const block = place.block;
    if (!tooltip.hidden && tooltip.dataset.block === String(block)) {
      position(event);
      return;
    }
    // A pointer that only passes by asks for nothing.
    tooltip.dataset.block = block;
    tooltip.replaceChildren(h("strong", {}, `Block ${grouped(block)}`), h("p", { class: "note" }, this.describe(block)));
    tooltip.hidden = false;
    position(event);
    await new Promise((done) => setTimeout(done, 60));
    if (this.hovered !== block) return;
    try {
      const { start, end, text } = await this.texts.get(block);
      if (this.hovered !== block) return;
      tooltip.append(h("p", { class: "note" }, tokenRange(start, end)), h("p", { class: "excerpt" }, text));
    } catch (error) {
      if (this.hovered === block) tooltip.append(h("p", {}, error.message));
    }
    position(event);
  }

  /** Shows a block's text below the grid, where it stays. */
  async pin(block) {
    if (!this.texts) return;
    this.pinned = block;
    for (const button of byId("read-list").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.block === String(block)));
    }
    const panel = byId("block-text");
    const head = h("h3", {}, `Block ${grouped(block)}`);
    panel.hidden = false;
    try {
      const { start, end, text } = await this.texts.get(block);
      if (this.pinned !== block) return;
      const note = h("p", { class: "note" }, `${tokenRange(start, end)}; ${this.describe(block)}`);
      panel.replaceChildren(head, note, h("pre", { tabindex: "0" }, text));
    } catch (error) {
      panel.replaceChildren(head, errorBox(error));
    }
  }
}

const tokenRange = (start, end) => `tokens ${grouped(start)} to ${grouped(end - 1)}`;
const quoted = (text) => (text ? `“${visible(text)}”` : "which ends the answer or a part of a character");
const visible = (text) => text.replace(/\n/g, "⏎").replace(/ /g, "␣").replace(/\t/g, "⇥") || "∅";

function position(event) {
  const [x, y] = [event.clientX, event.clientY];
  const { offsetWidth: w, offsetHeight: t } = tooltip;
  tooltip.style.left = `${Math.max(Math.min(x + 14, innerWidth - w - 8), 8)}px`;
  tooltip.style.top = `${y + 18 + t > innerHeight ? Math.max(y - t - 14, 8) : y + 18}px`;
}
