// The body of a chat completion, from a conversation and the settings. Sends nothing.

/**
 * @typedef {import("./answer.js").Answer} Answer
 * @typedef {{role: "user", content: string}} Question
 * @typedef {{role: "tool", content: string, call: string, name: string}} Result of a tool call
 * @typedef {Question | Result | Answer} Message
 * @typedef {object} Settings what the reader chose; a number left empty is null
 * @property {string} system
 * @property {number | null} temperature
 * @property {number | null} top_p
 * @property {number | null} top_k
 * @property {number | null} max_tokens
 * @property {number | null} seed
 * @property {string} tools JSON
 * @property {boolean} thinking
 * @property {boolean} drafts
 * @typedef {Settings & {model: string, seed: number}} Asked the settings of one answer; its model is
 *   known when it starts
 */

const NUMBERS = /** @type {const} */ (["temperature", "top_p", "top_k", "max_tokens", "seed"]);

/**
 * The settings of one answer. A seed is always chosen, so that it can be asked for again.
 * @param {Settings} settings @returns {Asked}
 */
export const askedWith = (settings) => ({
  ...settings,
  model: "",
  seed: settings.seed ?? Math.floor(Math.random() * 2 ** 31),
});

/**
 * The tools in a text: a list of OpenAI's tools, or of their functions alone. Raises an Error that
 * says what to write.
 * @param {string} text
 */
export function toolsIn(text) {
  if (!text.trim()) return [];
  let tools;
  try {
    tools = [JSON.parse(text)].flat();
  } catch (error) {
    throw new Error(`Tools must be JSON: ${/** @type {Error} */ (error).message}`);
  }
  return tools.map((tool) => {
    const made = tool?.function ? tool : { type: "function", function: tool };
    if (typeof made.function?.name === "string") return made;
    throw new Error('Each tool needs a "name", and "parameters" with a JSON schema.');
  });
}

/** The body. @param {Message[]} messages those before the answer @param {Asked} asked */
export function bodyOf(messages, asked) {
  const system = asked.system.trim() ? [{ role: "system", content: asked.system }] : [];
  /** @type {Record<string, unknown>} */
  const body = {
    model: asked.model,
    messages: [...system, ...messages.flatMap(wire)],
    stream: true,
    stream_options: { include_usage: true },
    timings_per_token: true, // llama.cpp's: figures while the answer grows
    chat_template_kwargs: { enable_thinking: asked.thinking },
  };
  for (const name of NUMBERS) if (asked[name] !== null) body[name] = asked[name];
  const tools = toolsIn(asked.tools);
  if (tools.length) body.tools = tools;
  if (!asked.drafts) body.draft = false;
  return body;
}

/** A message as OpenAI writes it; none for an answer that stopped before its first word. @param {Message} message */
function wire(message) {
  const { role, content } = message;
  if (role === "user") return [{ role, content }];
  if (role === "tool") return [{ role, tool_call_id: message.call, name: message.name, content }];
  const calls = message.state === "done" ? message.calls : []; // others may be cut off
  if (!content && !calls.length) return [];
  /** @type {Record<string, unknown>} */
  const said = { role, content };
  if (message.thoughts) said.reasoning_content = message.thoughts;
  if (calls.length) {
    said.tool_calls = calls.map(({ id, name, arguments: text }) => ({
      id,
      type: "function",
      function: { name, arguments: text },
    }));
  }
  return [said];
}
