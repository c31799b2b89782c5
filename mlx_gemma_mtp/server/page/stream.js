// Server-sent events of a chat completion, as they arrive. Knows the wire, not what is in a chunk.

import { broken, Failure, failureOf, gone } from "./failure.js";

/**
 * The data of each event in a stream of bytes. An event without its empty line at the end is cut
 * off and left out, as the standard says.
 * @param {AsyncIterable<Uint8Array>} bytes
 * @returns {AsyncGenerator<string>}
 */
export async function* events(bytes) {
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  for await (const part of bytes) {
    rest += decoder.decode(part, { stream: true });
    // A carriage return at the end may be half of "\r\n": it waits for the next part.
    const lines = rest.split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (line === "") {
        if (data.length) yield data.join("\n");
        data = [];
      } else if (line.startsWith("data:")) {
        data.push(line.slice(line[5] === " " ? 6 : 5));
      } // Comments and other fields say nothing to a chat.
    }
  }
}

/** A stream's bytes; not every browser can iterate one. @param {ReadableStream<Uint8Array>} body */
async function* partsOf(body) {
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {}); // already broken or aborted: there is nothing to end
  }
}

/**
 * Call the server. Raises a Failure, or an AbortError if `signal` ended the call.
 * @param {string} path relative to the page
 * @param {{key: string, body?: object, signal?: AbortSignal}} options
 */
export async function call(path, { key, body, signal }) {
  /** @type {Record<string, string>} */
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw gone();
  }
  if (!response.ok) throw await failureOf(response, key);
  return response;
}

/**
 * The chunks of a streamed chat completion. Raises a Failure, or an AbortError.
 * @param {object} body
 * @param {{key: string, signal: AbortSignal}} options
 */
export async function* chunks(body, { key, signal }) {
  const response = await call("v1/chat/completions", { key, body, signal });
  if (!response.body) throw broken();
  try {
    for await (const data of events(partsOf(response.body))) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Failure(String(chunk.error.message ?? chunk.error));
      yield chunk;
    }
  } catch (error) {
    if (signal.aborted || error instanceof Failure) throw error;
    if (error instanceof TypeError || error instanceof SyntaxError) throw broken();
    throw error;
  }
  throw broken(); // no [DONE]
}
