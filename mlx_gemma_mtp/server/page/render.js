// Markdown's blocks as elements. A text that grew changes only the blocks that differ, so that a
// selection and a focus in the others stay.

import { copyButton, element } from "./dom.js";
import { isAddress } from "./inline.js";
import { blocks } from "./markdown.js";

/**
 * @typedef {import("./markdown.js").Block} Block
 * @typedef {import("./inline.js").Span} Span
 */

/** @type {WeakMap<Node, string>} */
const sources = new WeakMap(); // what places and blocks show

/** Show a text in an element. @param {HTMLElement} place @param {string} text */
export function show(place, text) {
  if ((sources.get(place) ?? "") === text) return;
  sources.set(place, text);
  const wanted = blocks(text);
  wanted.forEach((block, index) => {
    const old = place.childNodes[index];
    const source = `${block.kind} ${block.source}`;
    if (old && sources.get(old) === source) return;
    const made = blockElement(block);
    sources.set(made, source);
    if (old) old.replaceWith(made);
    else place.append(made);
  });
  while (place.childNodes.length > wanted.length) place.lastChild?.remove();
}

/** @param {Block} block @returns {HTMLElement} */
function blockElement(block) {
  switch (block.kind) {
    case "heading": {
      // The page has an h1, and each message an h2.
      const tag = /** @type {"h3"} */ (`h${Math.min(6, (block.level ?? 1) + 2)}`);
      return element(tag, {}, ...spans(block.spans));
    }
    case "code":
      return codeElement(block.text ?? "", block.language ?? "");
    case "list":
      return listElement(block);
    case "quote":
      return element("blockquote", {}, ...(block.blocks ?? []).map(blockElement));
    case "table":
      return tableElement(block);
    case "rule":
      return element("hr");
    default:
      return element("p", {}, ...spans(block.spans));
  }
}

/** @param {string} text @param {string} language */
export function codeElement(text, language) {
  const bar = element(
    "div",
    { class: "code-bar" },
    element("span", {}, language || "text"),
    copyButton(() => text, "Copy the code"),
  );
  // Focusable, so that the keyboard can scroll it.
  const box = element(
    "pre",
    { tabindex: 0, "aria-label": "Code", role: "group" },
    element("code", {}, text),
  );
  return element("div", { class: "code" }, bar, box);
}

/** @param {Block} block */
function listElement({ start, items = [] }) {
  const numbers = start == null || start === 1 ? {} : { start };
  const made = element(start == null ? "ul" : "ol", { dir: "auto", ...numbers });
  for (const { blocks: inside, checked } of items) {
    const children = inside.map((block) =>
      // A paragraph of its own needs no space around it in a list.
      block.kind === "paragraph" && inside.filter(({ kind }) => kind === "paragraph").length === 1
        ? element("span", {}, ...spans(block.spans))
        : blockElement(block),
    );
    const label = checked ? "done" : "not done";
    const task =
      checked !== null &&
      element("input", { type: "checkbox", checked, disabled: true, "aria-label": label });
    made.append(element("li", checked === null ? {} : { class: "task" }, task, ...children));
  }
  return made;
}

/** @param {Block} block */
function tableElement({ head = [], rows = [], align = [] }) {
  const cell = (
    /** @type {"th"|"td"} */ tag,
    /** @type {Span[]} */ content,
    /** @type {number} */ index,
  ) => element(tag, align[index] ? { class: `to-${align[index]}` } : {}, ...spans(content));
  const line = (/** @type {"th"|"td"} */ tag, /** @type {Span[][]} */ contents) =>
    element("tr", {}, ...contents.map((content, index) => cell(tag, content, index)));
  const table = element(
    "table",
    {},
    element("thead", {}, line("th", head)),
    element("tbody", {}, ...rows.map((row) => line("td", row))),
  );
  return element(
    "div",
    { class: "table", tabindex: 0, role: "group", "aria-label": "Table" },
    table,
  );
}

/** @param {Span[]} [list] @returns {(HTMLElement | string)[]} */
function spans(list = []) {
  return list.map((span) => {
    switch (span.kind) {
      case "break":
        return element("br");
      case "code":
        return element("code", {}, span.text);
      case "strong":
      case "em":
      case "del":
        return element(span.kind, {}, ...spans(span.spans));
      case "link":
        return linkElement(span);
      default:
        return span.text ?? "";
    }
  });
}

/** A link, only its text if it leads to something other than a page or a mailbox. @param {Span} span */
function linkElement({ href = "", spans: inside }) {
  if (!isAddress(href)) return element("span", {}, ...spans(inside));
  const safe = { href, title: href, target: "_blank", rel: "noopener noreferrer nofollow" };
  return element("a", safe, ...spans(inside));
}
