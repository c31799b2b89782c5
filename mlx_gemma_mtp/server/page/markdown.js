// Markdown as blocks: data, not HTML. What models write: CommonMark's usual parts and tables.
// HTML stays text. A text that is cut off anywhere still gives blocks, so it can be shown as it
// grows. Every line end in a paragraph is kept.

import { inline } from "./inline.js";

/**
 * @typedef {import("./inline.js").Span} Span
 * @typedef {object} Block
 * @property {"paragraph"|"heading"|"code"|"list"|"quote"|"table"|"rule"} kind
 * @property {string} [source] its lines, of a block at the top
 * @property {Span[]} [spans] of a paragraph and a heading
 * @property {number} [level] of a heading: 1 to 6
 * @property {string} [text] of code
 * @property {string} [language] of code, may be empty
 * @property {number | null} [start] of a list: its first number, or null if it has bullets
 * @property {Item[]} [items] of a list
 * @property {Block[]} [blocks] of a quote
 * @property {Span[][]} [head] of a table: its cells
 * @property {Span[][][]} [rows] of a table
 * @property {("left"|"center"|"right"|"")[]} [align] of a table's columns
 * @typedef {{blocks: Block[], checked: boolean | null}} Item checked: null if it is not a task
 */

const FENCE = /^ {0,3}(`{3,}(?=[^`]*$)|~{3,})\s*([^\s`]*)/;
const HEADING = /^ {0,3}(#{1,6})(?:\s+(.*?))?(?:\s+#+)?\s*$/;
const RULE = /^ {0,3}(?:(?:\*\s*){3,}|(?:-\s*){3,}|(?:_\s*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( +|$)/;
const TASK = /^\[([ xX])\] +/;
const DIVIDER = /^ {0,3}\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;
const MAX_DEPTH = 12; // of quotes and lists in each other; deeper ones stay text

/** The blocks of a text, with their source. @param {string} text @returns {Block[]} */
export function blocks(text) {
  const lines = text.replace(/\r\n?/g, "\n").replaceAll("\t", "    ").split("\n");
  /** @type {Block[]} */
  const found = [];
  let at = 0;
  while (at < lines.length) {
    const start = at;
    const [block, end] = next(lines, at, 0);
    at = end;
    if (block) found.push({ ...block, source: lines.slice(start, end).join("\n") });
  }
  return found;
}

/** @param {string[]} lines @param {number} depth @returns {Block[]} */
function inner(lines, depth) {
  /** @type {Block[]} */
  const found = [];
  let at = 0;
  while (at < lines.length) {
    const [block, end] = next(lines, at, depth);
    at = end;
    if (block) found.push(block);
  }
  return found;
}

/**
 * The block that starts at a line, null if that is empty, and the line after it.
 * @param {string[]} lines @param {number} at @param {number} depth
 * @returns {[Block | null, number]}
 */
function next(lines, at, depth) {
  const line = lines[at];
  if (!line.trim()) return [null, at + 1];
  const fence = FENCE.exec(line);
  if (fence) return code(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) {
    const spans = inline(heading[2] ?? "");
    return [{ kind: "heading", level: heading[1].length, spans }, at + 1];
  }
  if (RULE.test(line)) return [{ kind: "rule" }, at + 1];
  if (depth < MAX_DEPTH && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < MAX_DEPTH && ITEM.test(line)) return list(lines, at, depth);
  if (isTable(lines, at)) return table(lines, at);
  let end = at + 1;
  while (end < lines.length && !interrupts(lines, end)) end += 1;
  const text = lines
    .slice(at, end)
    .map((one) => one.trimStart())
    .join("\n");
  return [{ kind: "paragraph", spans: inline(text.trimEnd()) }, end];
}

/** True if a paragraph ends before this line. @param {string[]} lines @param {number} at */
function interrupts(lines, at) {
  const line = lines[at];
  const item = ITEM.exec(line);
  return (
    !line.trim() ||
    FENCE.test(line) ||
    HEADING.test(line) ||
    RULE.test(line) ||
    QUOTE.test(line) ||
    // "1986. A good year" in a paragraph is not an item.
    (item !== null &&
      line.length > item[0].length &&
      !(/\d/.test(item[2]) && parseInt(item[2]) !== 1)) ||
    isTable(lines, at)
  );
}

/**
 * @param {string[]} lines @param {number} at @param {RegExpExecArray} fence
 * @returns {[Block, number]}
 */
function code(lines, at, fence) {
  const indent = lines[at].length - lines[at].trimStart().length;
  const close = new RegExp(`^ {0,3}\\${fence[1][0]}{${fence[1].length},}\\s*$`);
  let end = at + 1;
  while (end < lines.length && !close.test(lines[end])) end += 1;
  const inside = lines.slice(at + 1, end).map((line) => unindented(line, indent));
  return [{ kind: "code", language: fence[2], text: inside.join("\n") }, end + 1];
}

/** @param {string} line @param {number} most spaces to take away */
function unindented(line, most) {
  const spaces = line.length - line.trimStart().length;
  return line.slice(Math.min(spaces, most));
}

/** @param {string[]} lines @param {number} at @param {number} depth @returns {[Block, number]} */
function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inside = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [{ kind: "quote", blocks: inner(inside, depth + 1) }, end];
}

/** @param {string[]} lines @param {number} at @param {number} depth @returns {[Block, number]} */
function list(lines, at, depth) {
  const sign = /** @type {RegExpExecArray} */ (ITEM.exec(lines[at]))[2];
  const numbered = /\d/.test(sign);
  /** @type {Item[]} */
  const items = [];
  let end = at;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (!item || item[2].at(-1) !== sign.at(-1) || RULE.test(lines[end])) break;
    const after = itemEnd(lines, end, item[1].length + 2);
    // The text of an item starts where its first line does; more than four spaces are the text's.
    const width = item[3].length > 4 ? item[0].length - item[3].length + 1 : item[0].length;
    const rest = lines.slice(end + 1, after).map((line) => unindented(line, width));
    const first = lines[end].slice(width);
    const task = TASK.exec(first);
    const inside = [task ? first.slice(task[0].length) : first, ...rest];
    items.push({ blocks: inner(inside, depth + 1), checked: task && task[1] !== " " });
    end = after;
  }
  return [{ kind: "list", start: numbered ? parseInt(sign) : null, items }, end];
}

/**
 * The line after an item: the next one that is neither indented nor the rest of its paragraph.
 * @param {string[]} lines @param {number} at @param {number} indent
 */
function itemEnd(lines, at, indent) {
  let end = at + 1;
  while (end < lines.length) {
    let line = end;
    while (line < lines.length && !lines[line].trim()) line += 1;
    if (line === lines.length) return line;
    const inside = lines[line].startsWith(" ".repeat(indent));
    const goesOn = line === end && !ITEM.test(lines[line]) && !interrupts(lines, line);
    const sibling = ITEM.test(lines[line]);
    if (!inside && !goesOn) return sibling ? line : end;
    end = line + 1;
  }
  return end;
}

/** @param {string[]} lines @param {number} at */
function isTable(lines, at) {
  return (
    lines[at].includes("|") &&
    at + 1 < lines.length &&
    lines[at + 1].includes("-") &&
    DIVIDER.test(lines[at + 1]) &&
    cells(lines[at]).length === cells(lines[at + 1]).length
  );
}

/** @param {string[]} lines @param {number} at @returns {[Block, number]} */
function table(lines, at) {
  const head = cells(lines[at]).map(inline);
  const align = cells(lines[at + 1]).map((cell) => {
    const [left, right] = [cell.startsWith(":"), cell.endsWith(":")];
    return left && right ? "center" : right ? "right" : left ? "left" : "";
  });
  let end = at + 2;
  while (end < lines.length && lines[end].trim() && lines[end].includes("|")) end += 1;
  const rows = lines.slice(at + 2, end).map((line) => {
    const row = cells(line).slice(0, head.length).map(inline);
    return [...row, ...Array.from({ length: head.length - row.length }, () => [])];
  });
  return [{ kind: "table", head, align, rows }, end];
}

/** The cells of a table's line. "\|" is a bar in a cell. @param {string} line */
function cells(line) {
  const bare = line
    .trim()
    .replace(/^\|/, "")
    .replace(/(?<!\\)\|$/, "");
  return bare.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}
