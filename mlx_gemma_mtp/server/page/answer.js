// An answer that grows chunk by chunk, and its figures. Knows OpenAI's chunks, not the network.

/**
 * @typedef {{id: string, name: string, arguments: string}} Call
 * @typedef {object} Figures
 * @property {number} [firstToken] seconds from the request to the first token
 * @property {number} [thinking] seconds of thinking
 * @property {number} [seconds] of decoding
 * @property {number} [tokens] generated
 * @property {number} [speed] tokens per second of decoding
 * @property {number} [drafted] draft tokens
 * @property {number} [accepted] draft tokens that were accepted
 * @property {number} [prompt] tokens of the prompt
 * @property {number} [cached] tokens of the prompt that weren't computed again
 * @typedef {object} Answer
 * @property {"assistant"} role
 * @property {string} content
 * @property {string} thoughts
 * @property {Call[]} calls
 * @property {Figures} figures
 * @property {import("./request.js").Asked} asked what the server was asked for
 * @property {"waiting"|"thinking"|"answering"|"done"|"stopped"|"failed"} state
 * @property {string} [finish] why it ended, in OpenAI's words
 * @property {{message: string, needsKey: boolean, retryAfter: number}} [failure]
 * @property {import("./compared.js").Comparison} [comparison]
 */

/** An answer before its first token. @param {import("./request.js").Asked} asked @returns {Answer} */
export function emptyAnswer(asked) {
  const figures = {};
  return {
    role: "assistant",
    content: "",
    thoughts: "",
    calls: [],
    figures,
    asked,
    state: "waiting",
  };
}

/** @param {Answer} answer */
export const isRunning = ({ state }) =>
  state === "waiting" || state === "thinking" || state === "answering";

/**
 * Add a chunk to an answer.
 * @param {Answer} answer
 * @param {any} chunk in the shape of OpenAI's chat.completion.chunk
 * @param {number} seconds since the request
 */
export function add(answer, chunk, seconds) {
  const choice = chunk.choices?.[0];
  const delta = choice?.delta ?? {};
  const { figures } = answer;
  const calls = delta.tool_calls ?? [];
  if (delta.reasoning_content || delta.content || calls.length) {
    figures.firstToken ??= seconds;
  }
  if (delta.reasoning_content) {
    answer.thoughts += delta.reasoning_content;
    answer.state = "thinking";
    figures.thinking = seconds - (figures.firstToken ?? seconds);
  }
  if (delta.content || calls.length) answer.state = "answering";
  answer.content += delta.content ?? "";
  for (const part of calls) {
    const call = (answer.calls[part.index ?? 0] ??= { id: "", name: "", arguments: "" });
    call.id ||= part.id ?? "";
    call.name += part.function?.name ?? "";
    call.arguments += part.function?.arguments ?? "";
  }
  if (choice?.finish_reason) answer.finish = choice.finish_reason;
  if (chunk.usage) addUsage(figures, chunk.usage);
  if (chunk.timings) addTimings(figures, chunk.timings);
}

/** @param {Figures} figures @param {any} usage */
function addUsage(figures, usage) {
  figures.prompt = usage.prompt_tokens;
  figures.tokens = usage.completion_tokens;
  figures.cached = usage.prompt_tokens_details?.cached_tokens;
}

/** Add llama.cpp's timings; those of drafts come at the end. @param {Figures} figures @param {any} timings */
function addTimings(figures, timings) {
  figures.tokens = timings.predicted_n;
  figures.seconds = timings.predicted_ms / 1000;
  figures.speed = timings.predicted_per_second;
  figures.drafted = timings.draft_n;
  figures.accepted = timings.draft_n_accepted;
}
