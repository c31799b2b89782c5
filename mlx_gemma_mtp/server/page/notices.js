// Short messages above the field, and words for screen readers.

import { button, byId, element } from "./dom.js";

const SECONDS = 30; // that an offer stays
const MOST = 3; // notices at once

/** Say something to screen readers; the answers themselves are not read token by token. @param {string} text */
export function announce(text) {
  byId("announcer").textContent = text;
}

/**
 * Show a notice until it is dismissed, or for some seconds if it offers something.
 * @param {string} text @param {{label: string, run: () => void}} [offer]
 */
export function notify(text, offer) {
  const place = byId("notices");
  for (const old of place.children) if (old.firstChild?.textContent === text) old.remove();
  const close = button("cross", "Dismiss", () => notice.remove());
  const act =
    offer &&
    element(
      "button",
      { type: "button", onclick: () => (notice.remove(), offer.run()) },
      offer.label,
    );
  const notice = element("div", { class: "notice" }, element("p", {}, text), act, close);
  place.append(notice);
  if (place.children.length > MOST) place.firstElementChild?.remove();
  announce(text);
  if (offer) setTimeout(() => notice.remove(), SECONDS * 1000);
}
