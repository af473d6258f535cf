// How much of the model's context the conversation fills, and which part of it came from the prefix cache.

import { byId, grouped, h } from "./dom.js";

const element = byId("meter");
const cached = h("span", { class: "cached" });
const fresh = h("span", { class: "fresh" });
const words = h("span", { class: "words" });
const bar = h("div", { class: "bar", role: "meter", "aria-valuemin": "0", "aria-label": "Context used" }, cached, fresh);
element.append(bar, words);

/** limit: the model's context in tokens. usage: the protocol's object, or null before the first answer. */
export function showUsage(usage, limit) {
  const used = usage ? usage.total_tokens : 0;
  const reused = usage?.prompt_tokens_details?.cached_tokens ?? 0;
  const share = (tokens) => `${limit ? Math.min((100 * tokens) / limit, 100) : 0}%`;
  cached.style.width = share(reused);
  fresh.style.width = share(used - reused);
  bar.setAttribute("aria-valuemax", limit ?? 0);
  bar.setAttribute("aria-valuenow", used);
  const context = limit ? ` of ${grouped(limit)}` : "";
  words.textContent = `${grouped(used)}${context} tokens` + (reused ? `, ${grouped(reused)} cached` : "");
  bar.setAttribute("aria-valuetext", words.textContent);
}
