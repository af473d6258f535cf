// A conversation as a tree: editing a message or asking again begins a branch, and nothing that was said is lost. Plain
// objects, as they are kept and exported: {id, title, named, created, updated, head, chosen, nodes: {id: node}}. `head` is
// the last node of the branch that is shown, `chosen` says which child of a node was shown last, and a node is
// {id, parent, role, content, made, ...}.

/** Also where crypto.randomUUID is missing: pages that did not come over https. */
export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newConversation() {
  const now = Date.now();
  return { id: newId(), title: "", named: false, created: now, updated: now, head: null, chosen: {}, nodes: {} };
}

/** A new node after `parent` (null: at the beginning), at the end of the branch that is shown. */
export function add(conversation, parent, fields) {
  const node = { id: newId(), parent, made: Date.now(), ...fields };
  conversation.nodes[node.id] = node;
  conversation.head = conversation.chosen[parent] = node.id;
  conversation.updated = Date.now();
  return node;
}

/** The nodes of the branch that ends in `last`, from the beginning. */
export function path(conversation, last = conversation.head) {
  const nodes = [];
  for (let node = conversation.nodes[last]; node; node = conversation.nodes[node.parent]) nodes.push(node);
  return nodes.reverse();
}

/** The nodes that come after `parent`, oldest first. */
export function children(conversation, parent) {
  return Object.values(conversation.nodes)
    .filter((node) => node.parent === parent)
    .sort((a, b) => a.made - b.made);
}

/** Shows the branch through `node`, as it was when it was shown last. */
export function choose(conversation, node) {
  conversation.chosen[node.parent] = node.id;
  let last = node.id;
  while (conversation.chosen[last]) last = conversation.chosen[last];
  conversation.head = last;
}

/** What the list calls a conversation: its own name, or how it begins. */
export function titleOf(conversation) {
  if (conversation.named) return conversation.title;
  const first = path(conversation).find((node) => node.role === "user");
  const words = (first?.content.trim() || first?.files?.[0]?.name || "New conversation").replace(/\s+/g, " ");
  return words.length > 60 ? `${words.slice(0, 59)}…` : words;
}
