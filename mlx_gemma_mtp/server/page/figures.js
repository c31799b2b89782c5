// Numbers in words: what an answer took. Only what was measured is shown.

/** @typedef {import("./answer.js").Answer} Answer */

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** @param {number} count */
export const tokens = (count) => `${whole.format(count)} ${count === 1 ? "token" : "tokens"}`;

/** @param {number} perSecond */
export const speed = (perSecond) =>
  `${perSecond < 100 ? perSecond.toFixed(1) : whole.format(perSecond)} tokens/s`;

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(seconds < 1 ? 2 : 1)} s`;
  const rounded = Math.round(seconds);
  return rounded < 60 ? `${rounded} s` : `${Math.floor(rounded / 60)} min ${rounded % 60} s`;
}

/** The share of drafts that were accepted, or that none were asked for. @param {Answer} answer */
export function acceptance({ asked, figures }) {
  if (!asked.drafts) return "drafts off";
  if (!figures.drafted) return undefined;
  return `${Math.round((100 * (figures.accepted ?? 0)) / figures.drafted)}% of drafts accepted`;
}

/** The line under an answer. @param {Answer} answer */
export function line(answer) {
  const { figures } = answer;
  const parts = [
    figures.speed && speed(figures.speed),
    acceptance(answer),
    figures.tokens !== undefined && tokens(figures.tokens),
    figures.firstToken !== undefined && `first token after ${duration(figures.firstToken)}`,
  ];
  return parts.filter(Boolean).join(" · ");
}

/** More, for a tip. @param {Answer} answer */
export function more({ asked, figures }) {
  const { prompt, cached, drafted, accepted } = figures;
  const known = cached ? `, ${whole.format(cached)} of them from the cache` : "";
  return [
    prompt !== undefined && `Prompt: ${tokens(prompt)}${known}.`,
    drafted &&
      `Drafts: ${whole.format(drafted)}, of which ${whole.format(accepted ?? 0)} were accepted.`,
    `Seed: ${asked.seed}.`,
  ]
    .filter(Boolean)
    .join("\n");
}
