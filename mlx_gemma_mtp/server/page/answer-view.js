// One answer of the model: thoughts, text, calls, figures, and what can be done with it.

import { isRunning } from "./answer.js";
import { showComparison } from "./comparison-view.js";
import { button, composing, copyButton, element, fit, icon } from "./dom.js";
import { duration, line, more } from "./figures.js";
import { codeElement, show } from "./render.js";

/**
 * @typedef {import("./answer.js").Answer} Answer
 * @typedef {import("./answer.js").Call} Call
 * @typedef {object} Actions
 * @property {(answer: Answer) => void} regenerate
 * @property {(answer: Answer) => void} compare
 * @property {(id: string, text: string) => void} result
 * @property {(message: import("./request.js").Question | import("./request.js").Result, text: string) => void} edit
 * @property {() => void} openSettings
 * @typedef {{openCalls: Call[], running: boolean}} Scene what the rest of the chat does
 */

/** @param {Answer} answer @param {Actions} actions */
export function answerView(answer, actions) {
  const summary = element("summary");
  const thoughts = element("div", { class: "markdown" });
  const folded = element("details", { class: "thoughts" }, summary, thoughts);
  const waiting = element("p", { class: "waiting" }, dot(), dot(), dot());
  const text = element("div", { class: "markdown" });
  const calls = element("div", { class: "calls" });
  const remark = element("p", { class: "remark" });
  const failure = element("div", { class: "failure" });
  const figures = element("span", { class: "figures" });
  const again = button("again", "Answer again", () => actions.regenerate(answer));
  const compare = button("compare", compareLabel(answer), () => actions.compare(answer), "Compare");
  compare.title = compareLabel(answer);
  const copyText = copyButton(() => answer.content, "Copy the answer");
  const foot = element(
    "div",
    { class: "foot" },
    figures,
    element("span", { class: "actions" }, copyText, again, compare),
  );
  const comparison = element("section", { class: "comparison", "aria-label": "Comparison" });
  const view = element(
    "article",
    { class: "answer", "aria-label": "Answer" },
    element("h2", { class: "unseen" }, "Answer"),
    ...[folded, waiting, text, calls, remark, failure, foot, comparison],
  );
  /** @type {ReturnType<typeof callView>[]} */
  const callViews = [];

  /** @param {Scene} scene */
  function update({ openCalls, running }) {
    const busy = isRunning(answer);
    view.setAttribute("aria-busy", String(busy));
    folded.hidden = !answer.thoughts;
    if (answer.thoughts) {
      const thinking = answer.state === "thinking";
      const { thinking: seconds = 0 } = answer.figures;
      const sofar = seconds < 1 ? "Thinking…" : `Thinking… ${duration(seconds)}`;
      const took = seconds < 0.01 ? "Thought" : `Thought for ${duration(seconds)}`;
      summary.textContent = thinking ? sofar : took;
      summary.classList.toggle("busy", thinking);
      show(thoughts, answer.thoughts);
    }
    waiting.hidden = answer.state !== "waiting";
    show(text, answer.content);
    answer.calls.forEach((call, index) => {
      const known = callViews[index] ?? callView(call, actions);
      if (!callViews[index]) calls.append(known.view);
      callViews[index] = known;
      known.update(!busy && openCalls.includes(call));
    });
    remark.textContent = remarkOn(answer);
    remark.hidden = !remark.textContent;
    showFailure(failure, answer, actions, running);
    figures.textContent = line(answer);
    figures.title = busy ? "" : more(answer);
    again.disabled = compare.disabled = running;
    compare.hidden = answer.state !== "done";
    copyText.hidden = !answer.content;
    again.hidden = Boolean(answer.failure); // it has a button
    foot.hidden = !figures.textContent && (busy || (again.hidden && !answer.content));
    foot.classList.toggle("busy", busy);
    showComparison(comparison, answer);
  }
  return { view, update };
}

const dot = () => element("span");

/** @param {Answer} answer */
const compareLabel = ({ asked }) =>
  `Run again ${asked.drafts ? "without" : "with"} drafts, and compare`;

/** @param {Answer} answer */
function remarkOn({ state, finish, content, calls }) {
  if (state === "stopped") return "Stopped.";
  if (finish === "length") return "Cut off: the maximum number of tokens was reached.";
  return state === "done" && !content && !calls.length ? "The answer is empty." : "";
}

/** @param {HTMLElement} place @param {Answer} answer @param {Actions} actions @param {boolean} running */
function showFailure(place, answer, actions, running) {
  const { failure } = answer;
  place.hidden = !failure;
  if (!failure) return;
  const wait = failure.retryAfter ? ` Wait ${failure.retryAfter} s before you retry.` : "";
  const retry = element(
    "button",
    { type: "button", disabled: running, onclick: () => actions.regenerate(answer) },
    "Retry",
  );
  const key =
    failure.needsKey &&
    element("button", { type: "button", onclick: actions.openSettings }, "Open the settings");
  place.replaceChildren(
    element("p", {}, failure.message + wait),
    element("div", { class: "bar" }, key, retry),
  );
}

/** A call, and the field for its result while it has none. @param {Call} call @param {Actions} actions */
function callView(call, actions) {
  const name = element("code");
  const given = element("div");
  const field = element("textarea", {
    rows: 2,
    class: "mono",
    spellcheck: false,
    "data-typed": "",
  });
  const label = element("label", {}, "Result", field);
  const form = element(
    "form",
    { class: "result" },
    label,
    element("button", { type: "submit" }, "Send the result"),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    actions.result(call.id, field.value);
  });
  field.addEventListener("input", () => fit(field));
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || composing(event)) return;
    event.preventDefault();
    form.requestSubmit();
  });
  const head = element("p", { class: "call-head" }, icon("call"), "Calls ", name);
  const view = element("div", { class: "call" }, head, given, form);
  /** @type {string | undefined} */
  let shown;

  /** @param {boolean} open true if the result is missing */
  function update(open) {
    name.textContent = call.name;
    if (call.arguments !== shown)
      given.replaceChildren(codeElement(indented(call.arguments), "arguments"));
    shown = call.arguments;
    form.hidden = !open;
  }
  return { view, update };
}

/** JSON on several lines, as it is while it is not complete. @param {string} text */
function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
