// Emphasis in Markdown: which of the runs of *, _ and ~ in a paragraph open or close a span.
// The rules are CommonMark's. Knows nothing of links and code, which come as finished spans.

/**
 * @typedef {import("./inline.js").Span} Span
 * @typedef {object} Run
 * @property {"run"} kind
 * @property {string} sign
 * @property {number} count of signs not used yet
 * @property {number} length of signs at first
 * @property {boolean} opens
 * @property {boolean} closes
 */

const SPACE = /^\s?$/u; // the start and the end of a paragraph count as spaces
const PUNCTUATION = /[\p{P}\p{S}]/u;

/**
 * The run of signs at a place, or undefined if it is only text.
 * @param {string} source @param {number} at @param {number} length @returns {Run | undefined}
 */
export function runAt(source, at, length) {
  const sign = source[at];
  if (sign === "~" && length !== 2) return undefined;
  const before = source.charAt(at - 1);
  const after = source.charAt(at + length);
  const left = !SPACE.test(after) && (!PUNCTUATION.test(after) || edge(before));
  const right = !SPACE.test(before) && (!PUNCTUATION.test(before) || edge(after));
  // Not inside words: snake_case stays as it is.
  const opens = left && (sign !== "_" || !right || PUNCTUATION.test(before));
  const closes = right && (sign !== "_" || !left || PUNCTUATION.test(after));
  return opens || closes ? { kind: "run", sign, count: length, length, opens, closes } : undefined;
}

/** @param {string} character */
const edge = (character) => SPACE.test(character) || PUNCTUATION.test(character);

/** @param {Run} opener @param {Run} closer */
function fit(opener, closer) {
  if (opener.sign !== closer.sign) return false;
  if (!opener.closes && !closer.opens) return true;
  const both = opener.length % 3 === 0 && closer.length % 3 === 0;
  return both || (opener.length + closer.length) % 3 !== 0;
}

/**
 * Turn runs into spans; those left over become text.
 * @param {(Span | Run)[]} pieces @returns {Span[]}
 */
export function emphasized(pieces) {
  /** @type {(Span | Run)[]} */
  const out = [];
  /** @type {{run: Run, at: number}[]} */
  const open = [];
  /** @type {Map<string, number>} */
  const floors = new Map(); // below it no run fits a closer of this kind: keeps the search short
  for (const piece of pieces) {
    if (piece.kind !== "run") {
      out.push(piece);
      continue;
    }
    const kind = `${piece.sign}${piece.opens}${piece.length % 3}`;
    while (piece.closes && piece.count) {
      const floor = floors.get(kind) ?? 0;
      let found = open.length - 1;
      while (found >= floor && !fit(open[found].run, piece)) found -= 1;
      if (found < floor) {
        floors.set(kind, open.length);
        break;
      }
      const { run, at } = open[found];
      const used = Math.min(run.count, piece.count, 2);
      const spans = out.splice(at + 1).map(plain);
      run.count -= used;
      piece.count -= used;
      if (!run.count) out.pop();
      open.length = found + (run.count ? 1 : 0);
      for (const [key, value] of floors) floors.set(key, Math.min(value, open.length));
      out.push({ kind: run.sign === "~" ? "del" : used === 2 ? "strong" : "em", spans });
    }
    if (!piece.count) continue;
    if (piece.opens) open.push({ run: piece, at: out.length });
    out.push(piece);
  }
  return out.map(plain);
}

/** @param {Span | Run} piece @returns {Span} */
const plain = (piece) =>
  piece.kind === "run" ? { kind: "text", text: piece.sign.repeat(piece.count) } : piece;
