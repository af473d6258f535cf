// Where messages are written: text, files, long pastes, and how much of the context they take.

import { AttachmentError, fileChip, isLong, readFile } from "./attachments.js";
import { byId, grouped } from "./dom.js";
import { tokensIn } from "./estimate.js";
import { userContent } from "./messages.js";
import { settings } from "./settings.js";

const TOLD = 200; // characters from which on a draft's size is told
const form = byId("composer");
const input = byId("input");
const chips = byId("chips");
const cue = byId("composer-cue");
const drop = byId("drop");

export class Composer {
  /** onSend({content, files}) returns whether the message was taken; room() is the tokens left in the context. */
  constructor({ onSend, room }) {
    Object.assign(this, { onSend, room, files: [] });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send();
      }
    });
    input.addEventListener("input", () => this.changed());
    input.addEventListener("paste", (event) => this.paste(event));
    const field = byId("attach-input");
    byId("attach").addEventListener("click", () => field.click());
    field.addEventListener("change", async () => {
      await this.attach([...field.files]);
      field.value = "";
    });
    this.listenForDrops(byId("chat"));
  }

  send() {
    const content = input.value.trim();
    if (!content && !this.files.length) return;
    if (!this.onSend({ content, files: this.files })) return;
    this.fill({ content: "", files: [] });
  }

  fill({ content, files }) {
    input.value = content;
    this.files = [...files];
    this.tell("");
    this.changed();
    input.focus();
  }

  paste(event) {
    const files = [...event.clipboardData.files];
    const text = event.clipboardData.getData("text/plain");
    if (files.length && !text) {
      event.preventDefault();
      this.attach(files);
    } else if (isLong(text)) {
      event.preventDefault();
      this.add([{ name: this.unused("Pasted text"), text }]);
      this.tell(`The pasted text is attached whole, ${grouped(text.length)} characters.`);
    }
  }

  unused(name) {
    const taken = new Set(this.files.map((file) => file.name));
    for (let n = 1; ; n++) {
      const candidate = n === 1 ? name : `${name} ${n}`;
      if (!taken.has(candidate)) return candidate;
    }
  }

  async attach(files) {
    const read = await Promise.allSettled(files.map(readFile));
    this.add(read.filter(({ status }) => status === "fulfilled").map(({ value }) => value));
    const refused = read.filter(({ status }) => status === "rejected").map(({ reason }) => reason);
    const unknown = refused.some((reason) => !(reason instanceof AttachmentError));
    this.tell(refused.map((reason) => reason.message).join(" ") + (unknown ? " The file cannot be read." : ""), true);
  }

  add(files) {
    this.files.push(...files);
    this.changed();
    input.focus();
  }

  tell(words, bad = false) {
    cue.textContent = words;
    cue.classList.toggle("bad", bad && words !== "");
  }

  /** The draft or the room for it is another one. */
  changed() {
    input.style.height = "auto";
    input.style.height = `${Math.min(input.scrollHeight + 2, innerHeight * 0.4)}px`;
    chips.hidden = !this.files.length;
    chips.replaceChildren(
      ...this.files.map((file) =>
        fileChip(file, {
          tokens: tokensIn(settings.model, file.text.length),
          onRemove: () => {
            this.files = this.files.filter((other) => other !== file);
            this.tell("");
            this.changed();
            input.focus();
          },
        }),
      ),
    );
    const draft = userContent({ content: input.value, files: this.files }).length;
    const tokens = tokensIn(settings.model, draft);
    const { left, limit } = this.room();
    const estimate = byId("estimate");
    estimate.hidden = draft < TOLD;
    estimate.classList.toggle("bad", limit !== undefined && tokens > left);
    estimate.textContent =
      limit !== undefined && tokens > left
        ? `about ${grouped(tokens)} tokens; the model has room for ${grouped(Math.max(left, 0))}`
        : `+ about ${grouped(tokens)} tokens`;
  }

  listenForDrops(place) {
    let inside = 0;
    const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    place.addEventListener("dragenter", (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      inside++;
      drop.hidden = false;
    });
    place.addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
    place.addEventListener("dragleave", () => {
      inside = Math.max(inside - 1, 0);
      drop.hidden = inside === 0;
    });
    place.addEventListener("drop", (event) => {
      inside = 0;
      drop.hidden = true;
      if (!holdsFiles(event)) return;
      event.preventDefault();
      this.attach([...event.dataTransfer.files]);
    });
  }
}
