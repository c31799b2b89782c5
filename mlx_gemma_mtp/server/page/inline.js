// The text of a Markdown paragraph as spans: data, not HTML. Unknown syntax stays text.

import { emphasized, runAt } from "./emphasis.js";

/**
 * @typedef {object} Span
 * @property {"text"|"code"|"strong"|"em"|"del"|"link"|"break"} kind
 * @property {string} [text] of text and code
 * @property {string} [href] of a link
 * @property {Span[]} [spans] inside
 * @typedef {Span | import("./emphasis.js").Run} Piece
 */

// Where something other than text may start. Bare addresses are links, too.
const START = /\\|`+|\*+|_+|~+|!?\[|\]|<| *\n|\bhttps?:\/\//g;
const ESCAPED = /\\([!-/:-@[-`{-~])/g;
const ADDRESS = /^(?:https?:\/\/|mailto:)/i;
const ANGLED = /<((?:https?:\/\/|mailto:)[^\s<>]*)>/iy;
const BARE = /[^\s<>"`]+/y;
// What follows a link's text: "(address)" or "(address "title")"; parentheses may be nested once.
const TARGET =
  /\(\s*(?:<([^<>\n]*)>|((?:[^\s()\\]|\\.|\((?:[^\s()\\]|\\.)*\))*))(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/y;

/** True if a link may lead there. @param {string} href */
export const isAddress = (href) => ADDRESS.test(href);

/** @param {string} source @returns {Span[]} */
export function inline(source) {
  /** @type {Piece[]} */
  const pieces = [];
  /** @type {number[]} */
  const brackets = []; // the pieces that are open ones
  let linked = -1; // the last piece that is a link: there is no link inside a link
  const ticks = backticks(source);
  let rest = 0; // where the text starts that is not in a piece yet
  /** Add a piece for source[start:end], and the text before it. */
  const put = (
    /** @type {Piece} */ piece,
    /** @type {number} */ start,
    /** @type {number} */ end,
  ) => {
    if (start > rest) pieces.push(textOf(source.slice(rest, start)));
    pieces.push(piece);
    START.lastIndex = rest = end;
  };
  START.lastIndex = 0;
  for (let found = START.exec(source); found; found = START.exec(source)) {
    const { 0: sign, index: start } = found;
    const end = start + sign.length;
    if (sign === "\\") {
      if (source[end] === "\n") put({ kind: "break" }, start, end + 1);
      else START.lastIndex = end + 1;
    } else if (sign.endsWith("\n")) {
      put({ kind: "break" }, start, end);
    } else if (sign[0] === "`") {
      const close = closing(ticks, sign.length, start);
      if (close)
        put({ kind: "code", text: codeOf(source.slice(end, close)) }, start, close + sign.length);
    } else if ("*_~".includes(sign[0])) {
      const run = runAt(source, start, sign.length);
      if (run) put(run, start, end);
    } else if (sign.endsWith("[")) {
      put({ kind: "text", text: sign }, start, end);
      brackets.push(pieces.length - 1);
    } else if (sign === "]") {
      const open = brackets.pop();
      const target = open !== undefined && open > linked ? matchAt(TARGET, source, end) : null;
      if (open === undefined || !target) continue;
      put({ kind: "text", text: "" }, start, end + target[0].length);
      const spans = emphasized(pieces.splice(open).slice(1, -1));
      const href = (target[1] ?? target[2]).replace(ESCAPED, "$1");
      linked = pieces.push({ kind: "link", href, spans }) - 1;
    } else if (sign === "<") {
      const angled = matchAt(ANGLED, source, start);
      if (angled) put(linkTo(angled[1]), start, start + angled[0].length);
    } else if (!brackets.length) {
      // An address.
      const address = trimmed(matchAt(BARE, source, start)?.[0] ?? "");
      put(linkTo(address), start, start + address.length);
    }
  }
  if (source.length > rest) pieces.push(textOf(source.slice(rest)));
  return emphasized(pieces);
}

/** @param {string} text @returns {Span} */
const textOf = (text) => ({ kind: "text", text: text.replace(ESCAPED, "$1") });

/** @param {string} href @returns {Span} */
const linkTo = (href) => ({ kind: "link", href, spans: [{ kind: "text", text: href }] });

/** @param {RegExp} pattern sticky @param {string} source @param {number} at */
function matchAt(pattern, source, at) {
  pattern.lastIndex = at;
  return pattern.exec(source);
}

/** Where runs of backticks start, by their length, the last ones first. @param {string} source */
function backticks(source) {
  /** @type {Map<number, number[]>} */
  const starts = new Map();
  for (const { 0: run, index } of source.matchAll(/`+/g)) {
    const known = starts.get(run.length);
    if (known) known.push(index);
    else starts.set(run.length, [index]);
  }
  for (const known of starts.values()) known.reverse();
  return starts;
}

/**
 * Where the code that starts at a run of backticks ends.
 * @param {Map<number, number[]>} ticks @param {number} length @param {number} start
 */
function closing(ticks, length, start) {
  const starts = ticks.get(length) ?? [];
  while (starts.length && starts[starts.length - 1] <= start) starts.pop();
  return starts[starts.length - 1];
}

/** The code between backticks; a space at both ends only keeps them apart. @param {string} text */
function codeOf(text) {
  const line = text.replaceAll("\n", " ");
  return /^ .*[^ ].* $/.test(line) ? line.slice(1, -1) : line;
}

/** An address without the signs that end the sentence around it. @param {string} address */
function trimmed(address) {
  let end = address.length;
  let unopened = address.split(")").length - address.split("(").length; // closing parentheses
  for (; end > 0; end -= 1) {
    const last = address[end - 1];
    if (last === ")" && unopened > 0) unopened -= 1;
    else if (!".,:;!?'*_~]}".includes(last)) break;
  }
  return address.slice(0, end);
}
