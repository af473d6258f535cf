// A conversation as a file: Markdown to read, JSON with every branch.

import { path, titleOf } from "./tree.js";

export function asMarkdown(conversation) {
  const parts = [`# ${titleOf(conversation)}`];
  for (const node of path(conversation)) {
    parts.push(node.role === "user" ? "## You" : "## Model");
    for (const { name, text } of node.files ?? []) parts.push(`File ${name}:\n\n${fenced(text)}`);
    if (node.content) parts.push(node.content);
    for (const { name, arguments: args, result } of node.calls ?? []) {
      parts.push(`Tool call ${name}:\n\n${fenced(args)}`);
      if (result) parts.push(`Result:\n\n${fenced(result)}`);
    }
  }
  return `${parts.join("\n\n")}\n`;
}

/** In a fence longer than any run of backticks in it. */
function fenced(text) {
  const runs = [...text.matchAll(/`+/g)].map(([run]) => run.length);
  const fence = "`".repeat(Math.max(3, ...runs.slice(0, 10_000).map((length) => length + 1)));
  return `${fence}\n${text.trimEnd()}\n${fence}`;
}

export function download(conversation, format) {
  const markdown = format === "markdown";
  const text = markdown ? asMarkdown(conversation) : `${JSON.stringify(conversation, null, 1)}\n`;
  const name = titleOf(conversation).replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "conversation";
  const url = URL.createObjectURL(new Blob([text], { type: markdown ? "text/markdown" : "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = `${name}.${markdown ? "md" : "json"}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
