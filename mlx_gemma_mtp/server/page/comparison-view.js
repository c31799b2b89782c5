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
  const { other } = answer.comparison;
  const [on, off] = answer.asked.drafts ? [answer, other] : [other, answer];
  const most = Math.max(on.figures.speed ?? 0, off.figures.speed ?? 0);
  place.replaceChildren(
    row("Drafts on", on, most),
    row("Drafts off", off, most),
    element("p", {}, ...verdict(answer, on, off)),
  );
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

/** @param {Answer} answer @param {Answer} on @param {Answer} off */
function verdict(answer, on, off) {
  const { other, difference } = answer.comparison ?? {};
  if (!other || isRunning(other)) {
    return [`Running again ${on === answer ? "without" : "with"} drafts…`];
  }
  if (other.failure) return [other.failure.message];
  if (other.state === "stopped") return ["Stopped before the texts could be compared."];
  const times = ratio(on, off);
  const faster = times && element("strong", {}, `${times.toFixed(1)}× the speed with drafts. `);
  if (!difference) {
    const { tokens: count, seconds } = other.figures;
    const size = count === undefined ? "" : `, ${tokens(count)}`;
    const saved =
      seconds && answer.figures.seconds ? Math.abs(seconds - answer.figures.seconds) : 0;
    const less = saved && times && times > 1 ? ` ${duration(saved)} saved.` : "";
    return [faster || "", `Same text${size}.${less}`];
  }
  return [
    faster || "",
    `The texts differ after ${difference.at} characters: `,
    element("code", {}, difference.here || "(end)"),
    " and ",
    element("code", {}, difference.there || "(end)"),
    ". With rounded weights this happens where two tokens are nearly tied.",
  ];
}
