// The conversation that is open, and the answers that are running. Knows nothing of the page: it
// reports each change, and the page shows it.

import { add, emptyAnswer, isRunning } from "./answer.js";
import { difference, otherOf } from "./compared.js";
import { Failure } from "./failure.js";
import { askedWith, bodyOf } from "./request.js";
import { newConversation, titleOf } from "./store.js";
import { chunks } from "./stream.js";

/**
 * @typedef {import("./answer.js").Answer} Answer
 * @typedef {import("./request.js").Message} Message
 * @typedef {import("./request.js").Question} Question
 * @typedef {import("./request.js").Result} Result
 * @typedef {import("./store.js").Conversation} Conversation
 * @typedef {object} Page
 * @property {() => import("./request.js").Settings} settings
 * @property {() => string} key the API key, may be empty
 * @property {() => Promise<string>} model the model's name. Raises a Failure
 * @property {(conversation: Conversation) => void} changed messages came, went or ended
 * @property {(answer: Answer) => void} grown an answer grew
 * @property {(before: Conversation) => void} shortened messages were removed from what was
 *   this conversation
 * @property {(conversation: Conversation, answer: Answer) => void} ended an answer is complete,
 *   stopped or failed
 * @property {(conversation: Conversation) => void} save
 */

export class Chat {
  /** @param {import("./store.js").Store} store @param {Page} page */
  constructor(store, page) {
    this.store = store;
    this.page = page;
    this.conversation = newConversation();
    /** @type {Map<string, {conversation: Conversation, abort: AbortController}>} */
    this.runs = new Map(); // by conversation
    /** @type {WeakSet<Conversation>} */
    this.forgotten = new WeakSet(); // removed or replaced while an answer was running
  }

  get running() {
    return this.runs.has(this.conversation.id);
  }

  /** A conversation as it is now, null if it is gone. @param {string} id */
  find(id) {
    if (id === this.conversation.id) return this.conversation;
    return this.runs.get(id)?.conversation ?? this.store.load(id);
  }

  /** Open a saved conversation, or a new one if it is gone. @param {string} [id] */
  open(id) {
    const run = id && this.runs.get(id);
    this.#show(run ? run.conversation : (id && this.store.load(id)) || newConversation());
  }

  /** Go back to what a conversation was. @param {Conversation} before */
  restore(before) {
    this.forget(before.id);
    this.page.save(before);
    this.#show(before);
  }

  /** Stop the answer of a conversation that was removed. @param {string} id */
  forget(id) {
    const run = this.runs.get(id);
    if (!run) return;
    this.forgotten.add(run.conversation);
    run.abort.abort();
    this.runs.delete(id);
  }

  /** @param {Conversation} conversation */
  #show(conversation) {
    this.conversation = conversation;
    if (!this.running) conversation.messages.forEach(settle);
    this.page.changed(conversation);
  }

  /** The calls of the last answer that have no result yet. */
  get openCalls() {
    const { messages } = this.conversation;
    const from = messages.findLastIndex(({ role }) => role === "assistant");
    const last = messages[from];
    if (last?.role !== "assistant" || last.state !== "done") return [];
    const given = messages.slice(from).map((message) => message.role === "tool" && message.call);
    return last.calls.filter(({ id }) => !given.includes(id));
  }

  /** @param {string} text */
  send(text) {
    this.conversation.messages.push({ role: "user", content: text });
    this.conversation.title ||= titleOf(this.conversation.messages);
    return this.#answer();
  }

  /** Give the result of a call; the model answers when all have one. @param {string} id @param {string} text */
  async result(id, text) {
    const call = this.openCalls.find((one) => one.id === id);
    if (!call || this.running) return;
    this.conversation.messages.push({ role: "tool", content: text, call: id, name: call.name });
    if (this.openCalls.length) this.#changed(this.conversation);
    else await this.#answer();
  }

  /** Answer again from an answer on. @param {Answer} answer */
  async regenerate(answer) {
    if (!this.running && this.#cut(answer)) await this.#answer();
  }

  /** Replace a question or a result, and answer again. @param {Question | Result} message @param {string} text */
  async edit(message, text) {
    if (this.running || !this.#cut(message)) return;
    this.conversation.messages.push({ ...message, content: text });
    if (this.openCalls.length) this.#changed(this.conversation);
    else await this.#answer();
  }

  /** Ask for an answer again, the same but for the drafts. @param {Answer} answer */
  async compare(answer) {
    const { conversation } = this;
    if (this.running) return;
    const before = conversation.messages.slice(0, conversation.messages.indexOf(answer));
    const other = otherOf(answer);
    answer.comparison = { other };
    await this.#run(conversation, other, before, () => this.page.grown(answer));
    if (other.state === "done") answer.comparison.difference = difference(answer, other);
    Object.assign(other, { content: "", thoughts: "", calls: [] }); // compared: no need to keep it
    this.#changed(conversation);
  }

  stop() {
    this.runs.get(this.conversation.id)?.abort.abort();
  }

  /** Remove a message and those after it. False if it isn't there. @param {Message} message */
  #cut(message) {
    const { conversation } = this;
    const at = conversation.messages.indexOf(message);
    if (at < 0) return false;
    const before = { ...conversation, messages: [...conversation.messages] };
    conversation.messages.length = at;
    if (before.messages.length > at + 1) this.page.shortened(before);
    return true;
  }

  async #answer() {
    const { conversation } = this;
    const answer = emptyAnswer(askedWith(this.page.settings()));
    const before = [...conversation.messages];
    conversation.messages.push(answer);
    await this.#run(conversation, answer, before, () => this.page.grown(answer));
    this.#changed(conversation);
    if (!this.forgotten.has(conversation)) this.page.ended(conversation, answer);
  }

  /**
   * Fill an answer. Failures are kept in it.
   * @param {Conversation} conversation @param {Answer} answer @param {Message[]} before
   * @param {() => void} grown
   */
  async #run(conversation, answer, before, grown) {
    const abort = new AbortController();
    this.runs.set(conversation.id, { conversation, abort });
    this.#changed(conversation);
    const start = performance.now();
    try {
      answer.asked.model ||= await this.page.model();
      const options = { key: this.page.key(), signal: abort.signal };
      for await (const chunk of chunks(bodyOf(before, answer.asked), options)) {
        add(answer, chunk, (performance.now() - start) / 1000);
        grown();
      }
      answer.state = "done";
    } catch (error) {
      answer.state = abort.signal.aborted ? "stopped" : "failed";
      if (answer.state === "failed") {
        if (!(error instanceof Failure)) reportError(error);
        const known = error instanceof Failure ? error : new Failure(String(error));
        const { message, needsKey, retryAfter } = known;
        answer.failure = { message, needsKey, retryAfter };
      }
    } finally {
      if (this.runs.get(conversation.id)?.abort === abort) this.runs.delete(conversation.id);
    }
  }

  /** @param {Conversation} conversation */
  #changed(conversation) {
    if (this.forgotten.has(conversation)) return;
    conversation.changed = Date.now();
    this.page.save(conversation);
    if (conversation === this.conversation) this.page.changed(conversation);
  }
}

/** An answer that was running when the page was closed was stopped. @param {Message} message */
function settle(message) {
  if (message.role !== "assistant") return;
  if (isRunning(message)) message.state = "stopped";
  if (message.comparison && isRunning(message.comparison.other)) delete message.comparison;
}
