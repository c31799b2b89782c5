// Two answers to the same request, with drafts and without: is the text the same?

import { emptyAnswer } from "./answer.js";

/**
 * @typedef {import("./answer.js").Answer} Answer
 * @typedef {object} Comparison
 * @property {Answer} other the answer with the other setting of drafts; its text is dropped when
 *   the comparison is done
 * @property {Difference | null} [difference] null if the texts are the same
 * @typedef {{at: number, here: string, there: string}} Difference at: characters that are the same
 */

const AROUND = 24; // characters shown before and after the first difference

/** The answer to compare with, before its first token. @param {Answer} answer */
export const otherOf = ({ asked }) => emptyAnswer({ ...asked, drafts: !asked.drafts });

/** What the model wrote, in one text; the ids of calls are the server's. @param {Answer} answer */
export function writtenIn({ thoughts, content, calls }) {
  const called = calls.map(({ name, arguments: text }) => `${name}(${text})`);
  return [thoughts, content, ...called].filter(Boolean).join("\n");
}

/** The first difference, or null. @param {Answer} one @param {Answer} other @returns {Difference | null} */
export function difference(one, other) {
  const [here, there] = [writtenIn(one), writtenIn(other)];
  if (here === there) return null;
  let at = 0;
  while (here[at] === there[at]) at += 1;
  const start = Math.max(0, at - AROUND);
  return { at, here: here.slice(start, at + AROUND), there: there.slice(start, at + AROUND) };
}

/** How many times as fast as the second; undefined if one is unknown. @param {Answer} fast @param {Answer} slow */
export function ratio(fast, slow) {
  const [one, other] = [fast.figures.speed, slow.figures.speed];
  return one && other ? one / other : undefined;
}
