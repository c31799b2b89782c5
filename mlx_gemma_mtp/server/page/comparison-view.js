// The panel that compares an answer with drafts to the same one without.

import { isRunning } from "./answer.js";
import { ratio } from "./compared.js";
import { element } from "./dom.js";
import { duration, speed, tokens } from "./figures.js";

/** @typedef {import("./answer.js").Answer} Answer */

/** Show the comparison of an answer in a place. @param {HTMLElement} place @param {Answer} answer */
export function showComparison(place, answer) {
  place.hidden = !answer.comparison;
  if (!answer.comparison) return;
  const [on, off] = onAndOff(answer);
  const most = Math.max(on.figures.speed ?? 0, off.figures.speed ?? 0);
  place.replaceChildren(row("Drafts on", on, most), row("Drafts off", off, most), verdict(answer));
}

/** The answer with drafts, and the one without. @param {Answer} answer */
function onAndOff(answer) {
  const other = answer.comparison?.other ?? answer;
  return answer.asked.drafts ? [answer, other] : [other, answer];
}

/** @param {string} name @param {Answer} answer @param {number} most tokens per second */
function row(name, answer, most) {
  const { speed: measured } = answer.figures;
  const bar = element("span", { class: "measure" });
  bar.style.width = `${measured && most ? (100 * measured) / most : 0}%`;
  const value = measured ? speed(measured) : isRunning(answer) ? "…" : "not measured";
  return element(
    "div",
    { class: answer.asked.drafts ? "row with" : "row" },
    element("span", {}, name),
    element("span", { class: "track", "aria-hidden": "true" }, bar),
    element("span", { class: "value" }, value),
  );
}

/** What came of the comparison, in words. @param {Answer} answer */
export const verdict = (answer) => element("p", {}, ...said(answer));

/** @param {Answer} answer */
function said(answer) {
  const { other = answer, difference } = answer.comparison ?? {};
  if (isRunning(other)) return [`Running again ${other.asked.drafts ? "with" : "without"} drafts…`];
  if (other.failure) return [other.failure.message];
  if (other.state === "stopped") return ["Stopped before the texts could be compared."];
  const [on, off] = onAndOff(answer);
  const times = ratio(on, off);
  const faster = times && element("strong", {}, `${times.toFixed(1)}× the speed with drafts. `);
  if (difference) {
    return [
      faster || "",
      `The texts differ after ${difference.at} characters: `,
      element("code", {}, difference.here || "(end)"),
      " and ",
      element("code", {}, difference.there || "(end)"),
      ". With rounded weights this happens where two tokens are nearly tied.",
    ];
  }
  const { tokens: count } = other.figures;
  const saved = (off.figures.seconds ?? 0) - (on.figures.seconds ?? 0);
  return [
    faster || "",
    count === undefined ? "Same text." : `Same text, ${tokens(count)}.`,
    times && saved > 0 ? ` ${duration(saved)} saved.` : "",
  ];
}
