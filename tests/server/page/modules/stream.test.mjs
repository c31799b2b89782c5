// Events arrive whole, wherever the network cuts the bytes, and add up to an answer.

import assert from "node:assert/strict";
import { test } from "node:test";
import { add, emptyAnswer } from "./answer.js";
import { difference } from "./compared.js";
import { failureOf } from "./failure.js";
import { askedWith, bodyOf, toolsIn } from "./request.js";
import { Store, titleOf } from "./store.js";
import { events } from "./stream.js";

async function* cut(text, size) {
  const bytes = new TextEncoder().encode(text);
  for (let at = 0; at < bytes.length; at += size) yield bytes.slice(at, at + size);
}

async function read(text, size) {
  const found = [];
  for await (const data of events(cut(text, size))) found.push(data);
  return found;
}

test("events are the same, however they are cut", async () => {
  const text =
    'data: {"a": "é日🎉"}\r\n\r\n: working\n\nevent: x\ndata:one\ndata: two\n\rdata: \r\rdata: cut off';
  for (const size of [1, 2, 3, 5, 1000]) {
    assert.deepEqual(await read(text, size), ['{"a": "é日🎉"}', "one\ntwo", ""]);
  }
});

const SETTINGS = {
  ...{ system: "", temperature: null, top_p: null, top_k: null, max_tokens: null, seed: 5 },
  ...{ tools: "", thinking: false, drafts: true },
};
const chunk = (delta, others = {}) => ({ choices: [{ delta, ...others }] });

test("chunks add up to an answer and its figures", () => {
  const answer = emptyAnswer(askedWith(SETTINGS));
  add(answer, chunk({ role: "assistant", content: "" }), 0.1);
  assert.deepEqual([answer.state, answer.figures.firstToken], ["waiting", undefined]);
  add(answer, chunk({ reasoning_content: "Hm" }), 0.5);
  add(answer, chunk({ reasoning_content: "m" }), 1.5);
  assert.equal(answer.state, "thinking");
  add(answer, chunk({ content: "Yes" }), 2);
  add(
    answer,
    chunk({ tool_calls: [{ index: 0, id: "i", function: { name: "f", arguments: '{"a"' } }] }),
    3,
  );
  add(answer, chunk({ tool_calls: [{ index: 0, function: { arguments: ": 1}" } }] }), 3);
  add(answer, chunk({}, { finish_reason: "tool_calls" }), 4);
  const usage = {
    prompt_tokens: 9,
    completion_tokens: 4,
    prompt_tokens_details: { cached_tokens: 3 },
  };
  const timings = {
    predicted_n: 4,
    predicted_ms: 2000,
    predicted_per_second: 2,
    draft_n: 3,
    draft_n_accepted: 1,
  };
  add(answer, { choices: [], usage, timings }, 4);
  assert.deepEqual([answer.thoughts, answer.content], ["Hmm", "Yes"]);
  assert.deepEqual(answer.calls, [{ id: "i", name: "f", arguments: '{"a": 1}' }]);
  const wanted = { firstToken: 0.5, thinking: 1, seconds: 2, tokens: 4, speed: 2 };
  assert.deepEqual(answer.figures, { ...wanted, drafted: 3, accepted: 1, prompt: 9, cached: 3 });
});

test("answers without a word are not sent, and calls that were cut off neither", () => {
  const asked = askedWith(SETTINGS);
  const stopped = {
    ...emptyAnswer(asked),
    state: "stopped",
    calls: [{ id: "i", name: "f", arguments: "{" }],
  };
  const { messages } = bodyOf([{ role: "user", content: "a" }, stopped], asked);
  assert.deepEqual(messages, [{ role: "user", content: "a" }]);
});

test("tools are taken alone, in a list, and as OpenAI writes them", () => {
  const made = { type: "function", function: { name: "f" } };
  for (const text of ['{"name": "f"}', '[{"name": "f"}]', JSON.stringify([made])]) {
    assert.deepEqual(toolsIn(text), [made]);
  }
  assert.throws(() => toolsIn("[{}]"), /needs a "name"/);
  assert.throws(() => toolsIn("{"), /must be JSON/);
});

test("a difference is found in thoughts, texts and calls, but not in the ids of calls", () => {
  const one = { thoughts: "a", content: "b", calls: [{ id: "1", name: "f", arguments: "{}" }] };
  assert.equal(difference(one, { ...one, calls: [{ ...one.calls[0], id: "2" }] }), null);
  assert.equal(difference(one, { ...one, thoughts: "x" }).at, 0);
  assert.equal(difference(one, { ...one, content: "by" }).at, 3);
  assert.equal(difference(one, { ...one, calls: [] }).at, 3);
});

test("a failure has the server's words", async () => {
  const said = async (...given) => (await failureOf(new Response(...given), "")).message;
  assert.equal(await said('{"error": {"message": "no"}}', { status: 400 }), "no");
  assert.equal(await said("<html>", { status: 502 }), "The server failed with status 502.");
  const busy = await failureOf(
    new Response("", { status: 503, headers: { "Retry-After": "7" } }),
    "",
  );
  assert.deepEqual([busy.message, busy.retryAfter], ["The server is busy. Retry in a moment.", 7]);
  const refused = (key) => failureOf(new Response("", { status: 401 }), key);
  assert.match((await refused("")).message, /asks for an API key/);
  assert.match((await refused("wrong")).message, /doesn't accept this API key/);
  assert.equal((await refused("")).needsKey, true);
});

/** Storage for some characters. */
function storage(room) {
  const items = new Map();
  return {
    ...{ getItem: (key) => items.get(key) ?? null, removeItem: (key) => items.delete(key) },
    key: (index) => [...items.keys()][index],
    setItem(key, value) {
      const others = [...items].filter(([name]) => name !== key);
      if (others.reduce((sum, [, text]) => sum + text.length, value.length) > room) {
        throw new DOMException("full", "QuotaExceededError");
      }
      items.set(key, value);
    },
    get length() {
      return items.size;
    },
  };
}
const conversation = (id, changed, size) => ({
  id,
  title: id,
  changed,
  messages: [{ role: "user", content: "x".repeat(size) }],
});

test("the oldest conversations make room, by our limit and by the browser's", () => {
  for (const store of [new Store(storage(1e9), 3000), new Store(storage(3000))]) {
    assert.deepEqual(store.save(conversation("b", 2, 1000)), []);
    assert.deepEqual(store.save(conversation("a", 1, 1000)), []);
    assert.deepEqual(store.save(conversation("c", 3, 1800)), ["a"]);
    assert.equal(store.save(conversation("d", 4, 9000)), null);
    assert.equal(store.load("a"), null);
  }
});

test("an entry that cannot be read is no conversation", () => {
  const kept = storage(1e9);
  const store = new Store(kept);
  for (const text of ["{", "null", "[]", '{"title": "x"}']) kept.setItem(`mgm.chat.${text}`, text);
  kept.setItem("other", "{");
  assert.deepEqual(store.entries(), []);
});

test("a title is the start of the first question", () => {
  assert.equal(titleOf([{ role: "user", content: "  a\n b " }]), "a b");
  assert.equal(titleOf([{ role: "user", content: "x".repeat(100) }]).length, 60);
});
