// Files as text. What is no text, or too much of it, is refused with the reason; nothing is cut.

import { grouped, h, iconButton } from "./dom.js";

const LARGEST = 16 * 2 ** 20; // bytes of one file: about what a context of millions of tokens holds
const LONG_PASTE = 4000; // characters; a longer paste becomes a file of its own

export class AttachmentError extends Error {}

/** {name, text} of a File. Throws AttachmentError. */
export async function readFile(file) {
  if (file.size > LARGEST) {
    throw new AttachmentError(`${file.name} has ${megabytes(file.size)}; a text file of up to ${megabytes(LARGEST)} can be attached.`);
  }
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (!bytes.length) throw new AttachmentError(`${file.name} is empty.`);
  const text = decode(bytes);
  if (text === null) throw new AttachmentError(`${file.name} is not a text file. Text in UTF-8 or UTF-16 can be attached.`);
  return { name: file.name, text };
}

/** The text, or null if the bytes are not UTF-8, or UTF-16 with its mark. */
function decode(bytes) {
  const utf16 = { 0xfffe: "utf-16le", 0xfeff: "utf-16be" }[(bytes[0] << 8) | bytes[1]];
  try {
    const text = new TextDecoder(utf16 ?? "utf-8", { fatal: true }).decode(bytes);
    return text.includes("\0") ? null : text;
  } catch {
    return null;
  }
}

export const isLong = (text) => text.length > LONG_PASTE;

const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

/** A file as a small button that shows its text; onRemove is for files not sent yet. */
export function fileChip(file, { tokens, onRemove } = {}) {
  const about = tokens ? `, about ${grouped(tokens)} tokens` : "";
  const size = h("small", {}, `${grouped(file.text.length)} characters${about}`);
  const show = h("button", { type: "button", class: "chip-name", title: "Show the text" }, file.name, size);
  show.addEventListener("click", () => showText(file));
  return h("span", { class: "file-chip" }, show, onRemove && iconButton("close", `Remove ${file.name}`, onRemove));
}

function showText({ name, text }) {
  const dialog = h("dialog", { class: "text-dialog", "aria-label": name });
  const head = h("header", {}, h("h2", {}, name), iconButton("close", "Close", () => dialog.close()));
  dialog.append(head, h("pre", { tabindex: "0" }, text));
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
}
