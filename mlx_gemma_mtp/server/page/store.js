// The conversations, kept in the browser: one entry each, so that two tabs don't overwrite each
// other. The oldest are dropped when the space runs out. Knows nothing of the page.

/**
 * @typedef {import("./request.js").Message} Message
 * @typedef {object} Conversation
 * @property {string} id
 * @property {string} title
 * @property {number} changed milliseconds since 1970
 * @property {Message[]} messages
 * @typedef {{id: string, title: string, changed: number}} Entry
 * @typedef {Pick<Storage, "getItem"|"setItem"|"removeItem"|"key"|"length">} Items
 */

const CONVERSATION = "mgm.chat.";
const TYPED = "mgm.typed."; // what is in the field below a conversation
const LIMIT = 4_000_000; // characters; browsers stop at about 5 million
const TITLE = 60; // characters

/** The name of a conversation's entry. @param {string} id */
export const keyOf = (id) => CONVERSATION + id;

/** Storage that lasts while the page does. @returns {Items} */
function memory() {
  /** @type {Map<string, string>} */
  const items = new Map();
  return {
    getItem: (key) => items.get(key) ?? null,
    setItem: (key, value) => void items.set(key, value),
    removeItem: (key) => void items.delete(key),
    key: (index) => [...items.keys()][index] ?? null,
    get length() {
      return items.size;
    },
  };
}

/**
 * The browser's storage. `lasts` is false if it keeps nothing: then it lasts while the page does.
 * @returns {{storage: Items, lasts: boolean}}
 */
export function browserStorage() {
  try {
    const storage = window.localStorage;
    storage.setItem("mgm.test", "");
    storage.removeItem("mgm.test");
    return { storage, lasts: true };
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
    return { storage: memory(), lasts: false };
  }
}

/** @returns {Conversation} */
export const newConversation = () => ({
  id: newId(),
  title: "",
  changed: Date.now(),
  messages: [],
});

// Not crypto.randomUUID: it doesn't exist without HTTPS, except on this machine.
const newId = () =>
  crypto.getRandomValues(new Uint32Array(2)).reduce((id, part) => id + part.toString(36), "");

/** The title of a conversation, from its first question. @param {Message[]} messages */
export function titleOf(messages) {
  const question = messages.find(({ role }) => role === "user")?.content ?? "";
  const line = question.trim().replace(/\s+/g, " ");
  return line.length > TITLE ? `${line.slice(0, TITLE - 1).trimEnd()}…` : line;
}

export class Store {
  /** @param {Items} storage @param {number} [limit] characters */
  constructor(storage, limit = LIMIT) {
    this.storage = storage;
    this.limit = limit;
    /** @type {Map<string, Entry> | undefined} */
    this.known = undefined; // the entries, once they were read
  }

  #keys() {
    return Array.from({ length: this.storage.length }, (_, index) => this.storage.key(index) ?? "");
  }

  /** The conversations, the newest first. @returns {Entry[]} */
  entries() {
    if (!this.known) {
      this.known = new Map();
      for (const key of this.#keys().filter((one) => one.startsWith(CONVERSATION))) {
        const found = this.load(key.slice(CONVERSATION.length));
        if (found) this.#note(found);
      }
    }
    return [...this.known.values()].sort((one, other) => other.changed - one.changed);
  }

  /** Read all entries again: another tab has changed them. */
  reread() {
    this.known = undefined;
  }

  /** @param {Conversation} conversation */
  #note({ id, title, changed }) {
    this.known?.set(id, { id, title, changed });
  }

  /** A conversation, null if it was removed or cannot be read. @param {string} id @returns {Conversation | null} */
  load(id) {
    try {
      const found = JSON.parse(this.storage.getItem(keyOf(id)) ?? "null");
      return Array.isArray(found?.messages) ? { ...found, id } : null;
    } catch (error) {
      if (error instanceof SyntaxError) return null;
      throw error;
    }
  }

  /**
   * Save a conversation. Returns the titles of the ones that were dropped for it, or null if it is
   * too large to be kept.
   * @param {Conversation} conversation @returns {string[] | null}
   */
  save(conversation) {
    const text = JSON.stringify(conversation);
    const dropped = [];
    const others = this.entries().filter(({ id }) => id !== conversation.id);
    while (!this.#write(keyOf(conversation.id), text)) {
      const oldest = others.pop();
      if (!oldest) return null;
      this.remove(oldest.id);
      dropped.push(oldest.title);
    }
    this.#note(conversation);
    return dropped;
  }

  /** @param {string} key @param {string} text */
  #write(key, text) {
    const used = this.#keys().filter((one) => one !== key);
    const size = used.reduce(
      (sum, one) => sum + (this.storage.getItem(one)?.length ?? 0),
      text.length,
    );
    if (size > this.limit) return false;
    try {
      this.storage.setItem(key, text);
      return true;
    } catch (error) {
      if (error instanceof DOMException) return false; // full
      throw error;
    }
  }

  /** @param {string} id */
  remove(id) {
    this.known?.delete(id);
    this.storage.removeItem(keyOf(id));
    this.storage.removeItem(TYPED + id);
  }

  /** What was typed below a conversation and not sent. @param {string} id */
  typed(id) {
    return this.storage.getItem(TYPED + id) ?? "";
  }

  /** Keep what was typed. False if there is no room. @param {string} id @param {string} text */
  keepTyped(id, text) {
    if (text) return this.#write(TYPED + id, text);
    this.storage.removeItem(TYPED + id);
    return true;
  }

  /** A value under a name, or `otherwise`. @template T @param {string} name @param {T} otherwise @returns {T} */
  get(name, otherwise) {
    try {
      return JSON.parse(this.storage.getItem(`mgm.${name}`) ?? "null") ?? otherwise;
    } catch (error) {
      if (error instanceof SyntaxError) return otherwise;
      throw error;
    }
  }

  /** @param {string} name @param {unknown} value */
  set(name, value) {
    return this.#write(`mgm.${name}`, JSON.stringify(value));
  }
}
