// What went wrong, in words for the reader. Knows HTTP's statuses, not what was asked.

export class Failure extends Error {
  /**
   * @param {string} message
   * @param {{needsKey?: boolean, retryAfter?: number}} [more] needsKey: true if an API key would
   *   help; retryAfter: seconds after which the server wants to be asked again.
   */
  constructor(message, { needsKey = false, retryAfter = 0 } = {}) {
    super(message);
    this.needsKey = needsKey;
    this.retryAfter = retryAfter;
  }
}

export const gone = () =>
  new Failure("The server doesn't answer. Check that mgm serve is running, then retry.");

export const broken = () =>
  new Failure("The connection ended before the answer was complete. Retry to ask again.");

/**
 * The failure of a response whose status isn't 2xx.
 * @param {Response} response @param {string} key the API key that was sent, may be empty
 */
export async function failureOf(response, key) {
  const text = await response.text().catch(() => "");
  const said = messageIn(text);
  const { status } = response;
  if (status === 401) {
    const what = key ? "doesn't accept this API key. Correct" : "asks for an API key. Enter";
    return new Failure(`The server ${what} it in the settings, then retry.`, { needsKey: true });
  }
  const retryAfter = Number(response.headers.get("retry-after")) || 0;
  if (status === 503 || status === 429) {
    return new Failure(said || "The server is busy. Retry in a moment.", { retryAfter });
  }
  return new Failure(said || `The server failed with status ${status}.`, { retryAfter });
}

/** The message of an error in OpenAI's shape, or "". @param {string} text */
export function messageIn(text) {
  try {
    const { error } = JSON.parse(text);
    return String(error?.message ?? (typeof error === "string" ? error : ""));
  } catch {
    return "";
  }
}
