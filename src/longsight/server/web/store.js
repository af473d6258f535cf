// Conversations, kept in this browser's IndexedDB: one store for the list, one for what was said. Where a browser keeps
// nothing (private windows may not), they live as long as the page.

import { titleOf } from "./tree.js";

const NAME = "longsight";
const ENTRIES = "entries";
const CONVERSATIONS = "conversations";

const entryOf = (conversation) => ({ id: conversation.id, title: titleOf(conversation), updated: conversation.updated });

/** An IndexedDB request as a promise. */
function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

class Database {
  persistent = true;

  constructor(db) {
    this.db = db;
  }

  stores(mode) {
    const transaction = this.db.transaction([ENTRIES, CONVERSATIONS], mode);
    return { entries: transaction.objectStore(ENTRIES), conversations: transaction.objectStore(CONVERSATIONS) };
  }

  list() {
    return result(this.stores("readonly").entries.getAll());
  }

  get(id) {
    return result(this.stores("readonly").conversations.get(id));
  }

  all() {
    return result(this.stores("readonly").conversations.getAll());
  }

  /** What another window has added to the conversation since stays in it. */
  async put(conversation) {
    const { entries, conversations } = this.stores("readwrite");
    const known = await result(conversations.get(conversation.id));
    const nodes = { ...known?.nodes, ...conversation.nodes };
    await Promise.all([
      result(conversations.put({ ...conversation, nodes })),
      result(entries.put(entryOf(conversation))),
    ]);
  }

  async delete(id) {
    const { entries, conversations } = this.stores("readwrite");
    await Promise.all([result(entries.delete(id)), result(conversations.delete(id))]);
  }

  async clear() {
    const { entries, conversations } = this.stores("readwrite");
    await Promise.all([result(entries.clear()), result(conversations.clear())]);
  }
}

class Memory {
  persistent = false;
  known = new Map();

  async list() {
    return [...this.known.values()].map(entryOf);
  }

  async get(id) {
    return this.known.get(id);
  }

  async all() {
    return [...this.known.values()];
  }

  async put(conversation) {
    this.known.set(conversation.id, conversation);
  }

  async delete(id) {
    this.known.delete(id);
  }

  async clear() {
    this.known.clear();
  }
}

/** Both kinds have list(), get(id), all(), put(conversation), delete(id), clear(), and say whether they are persistent. */
export async function openStore() {
  try {
    const opening = indexedDB.open(NAME, 1);
    opening.onupgradeneeded = () => {
      for (const name of [ENTRIES, CONVERSATIONS]) opening.result.createObjectStore(name, { keyPath: "id" });
    };
    return new Database(await result(opening));
  } catch {
    return new Memory();
  }
}

/** Whether `words`, in lower case, stand in the title or in anything that was said, attached files included. */
export function mentions(conversation, words) {
  const has = (text) => text?.toLowerCase().includes(words);
  return (
    has(titleOf(conversation)) ||
    Object.values(conversation.nodes).some(
      (node) => has(node.content) || node.files?.some((file) => has(file.name) || has(file.text)),
    )
  );
}
