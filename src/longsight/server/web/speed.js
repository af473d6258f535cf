// How an answer went, in words: tokens, speed, time to the first token.

import { grouped } from "./dom.js";

const ENDINGS = { length: "cut at the length limit", cancelled: "stopped" };

/** The notes under an answer. Speed is over the tokens after the first: those have been timed from one to the next. */
export function notes({ usage, times, finish, done, error }) {
  const words = [];
  if (usage) words.push(`${grouped(usage.completion_tokens)} token${usage.completion_tokens === 1 ? "" : "s"}`);
  if (finish in ENDINGS) words.push(ENDINGS[finish]);
  if (!done && !error) words.push("broken off");
  if (usage && times?.rest > 0 && usage.completion_tokens > 1) {
    words.push(`${rounded((usage.completion_tokens - 1) / (times.rest / 1000))} tokens/s`);
  }
  if (times) words.push(`first token after ${seconds(times.first)}`);
  return words;
}

/** What the prompt was, for those who look closer. */
export function promptNote({ usage }) {
  if (!usage) return null;
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  return `${grouped(usage.prompt_tokens)} tokens read` + (cached ? `, ${grouped(cached)} of them from the cache` : "");
}

const rounded = (number) => (number < 100 ? number.toFixed(1) : grouped(Math.round(number)));

function seconds(milliseconds) {
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  if (milliseconds < 60_000) return `${(milliseconds / 1000).toFixed(1)} s`;
  return `${Math.floor(milliseconds / 60_000)} min ${Math.round((milliseconds % 60_000) / 1000)} s`;
}
