// The list of conversations: open, search, rename, export, delete.

import { byId, h, iconButton } from "./dom.js";
import { download } from "./export.js";
import { confirmed, openMenu } from "./menu.js";
import { mentions } from "./store.js";
import { set, settings } from "./settings.js";

const panel = byId("history");
const button = byId("history-button");
const list = byId("history-list");
const search = byId("history-search");
const note = byId("history-note");
const narrow = matchMedia("(max-width: 760px)");
const DAY = 86_400_000;

export class History {
  /** onOpen(id) shows a conversation; onGone(id) hears of one deleted; onNamed(id, title) of one renamed. */
  constructor(store, { onOpen, onGone, onNamed }) {
    Object.assign(this, { store, onOpen, onGone, onNamed, shown: null });
    // Other windows of this page write to the same store.
    this.channel = new BroadcastChannel("longsight");
    this.channel.onmessage = () => this.draw();
    button.addEventListener("click", () => this.open(panel.hidden));
    panel.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !narrow.matches) return;
      this.open(false);
      button.focus();
    });
    byId("history-shade").addEventListener("click", () => this.open(false));
    byId("history-close").addEventListener("click", () => {
      this.open(false);
      button.focus();
    });
    search.addEventListener("input", () => this.draw());
    byId("history-clear").addEventListener("click", () => this.clear());
    this.open(!narrow.matches && settings.history !== "closed", false);
    if (!store.persistent) note.textContent = "This browser keeps nothing for the page: conversations end with it.";
    note.hidden = store.persistent;
  }

  open(yes, keep = true) {
    panel.hidden = !yes;
    byId("history-shade").hidden = !(yes && narrow.matches);
    button.setAttribute("aria-expanded", String(yes));
    if (keep && !narrow.matches) set("history", yes ? "" : "closed");
    if (yes && keep && narrow.matches) search.focus();
  }

  async save(conversation) {
    await this.store.put(conversation);
    this.channel.postMessage("changed");
    await this.draw();
  }

  show(id) {
    this.shown = id;
    return this.draw();
  }

  async draw() {
    const words = search.value.trim().toLowerCase();
    let entries = await this.store.list();
    if (words) {
      const found = new Set((await this.store.all()).filter((c) => mentions(c, words)).map(({ id }) => id));
      entries = entries.filter(({ id }) => found.has(id));
    }
    if (words !== search.value.trim().toLowerCase()) return; // somebody typed on
    entries.sort((a, b) => b.updated - a.updated);
    const groups = new Map();
    for (const entry of entries) {
      const name = ageOf(entry.updated);
      groups.set(name, [...(groups.get(name) ?? []), entry]);
    }
    const focused = document.activeElement?.closest?.("#history-list [data-id]")?.dataset.id;
    list.replaceChildren(
      ...[...groups].map(([name, group]) =>
        h("section", { "aria-label": name }, h("h3", {}, name), h("ul", {}, ...group.map((entry) => this.row(entry)))),
      ),
    );
    if (focused) list.querySelector(`[data-id="${focused}"] button`)?.focus();
    if (!entries.length) list.append(h("p", { class: "note" }, words ? "Nothing found." : "No conversations yet."));
    byId("history-clear").hidden = !entries.length || words !== "";
  }

  row({ id, title }) {
    const open = h("button", { type: "button", class: "title", "aria-current": id === this.shown ? "true" : null, title }, title);
    open.addEventListener("click", () => {
      this.onOpen(id);
      if (narrow.matches) this.open(false);
    });
    const more = iconButton("more", `More for ${title}`, () =>
      openMenu(more, [
        ["Rename", () => this.rename(id, row)],
        ["Export as Markdown", () => this.export(id, "markdown")],
        ["Export as JSON", () => this.export(id, "json")],
        ["Delete", () => this.delete(id, title)],
      ]),
    );
    more.setAttribute("aria-haspopup", "menu");
    const row = h("li", { "data-id": id }, open, more);
    return row;
  }

  async rename(id, row) {
    const field = h("input", { "aria-label": "New title" });
    field.value = row.querySelector(".title").textContent;
    let over = false;
    const end = async (keep) => {
      if (over) return;
      over = true;
      const title = field.value.trim();
      if (keep && title) {
        const conversation = await this.store.get(id);
        this.onNamed(id, title);
        await this.save({ ...conversation, title, named: true });
      } else await this.draw();
      list.querySelector(`[data-id="${id}"] button`)?.focus();
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter") end(true);
      else if (event.key === "Escape") end(false);
      else return;
      event.stopPropagation();
    });
    field.addEventListener("blur", () => end(true));
    row.replaceChildren(field);
    field.select();
  }

  async export(id, format) {
    download(await this.store.get(id), format);
  }

  async delete(id, title) {
    if (!(await confirmed(`Delete “${title}”? It cannot be brought back.`, "Delete"))) return;
    this.onGone(id);
    await this.store.delete(id);
    this.channel.postMessage("changed");
    await this.draw();
  }

  async clear() {
    if (!(await confirmed("Delete all conversations? They cannot be brought back.", "Delete all"))) return;
    for (const { id } of await this.store.list()) this.onGone(id);
    await this.store.clear();
    this.channel.postMessage("changed");
    await this.draw();
  }
}

function ageOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return "Today";
  if (time >= midnight - DAY) return "Yesterday";
  if (time >= midnight - 7 * DAY) return "Last 7 days";
  return "Older";
}
