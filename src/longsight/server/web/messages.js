// A branch of a conversation as the protocol's messages.

/** A message as the model reads it: each file's name and text, then what was typed. */
export function userContent({ content, files = [] }) {
  return [...files.map(({ name, text }) => `File ${name}:\n\n${text.trimEnd()}`), content].filter(Boolean).join("\n\n");
}

export function messagesOf(nodes, system) {
  const messages = system.trim() ? [{ role: "system", content: system }] : [];
  for (const node of nodes) {
    if (node.role === "user") messages.push({ role: "user", content: userContent(node) });
    else messages.push(...spoken(node));
  }
  return messages;
}

/** An answer as the next request repeats it, with what its tools returned. */
function spoken({ content, reasoning, calls }) {
  if (!content && !calls.length) return [];
  const message = { role: "assistant", content };
  if (reasoning) message.reasoning_content = reasoning;
  if (!calls.length) return [message];
  message.tool_calls = calls.map(({ id, name, arguments: args }) => ({
    id,
    type: "function",
    function: { name, arguments: args },
  }));
  const results = calls.map(({ id, result }) => ({ role: "tool", tool_call_id: id, content: result || "(no result)" }));
  return [message, ...results];
}
