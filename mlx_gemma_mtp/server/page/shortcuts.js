// The keys that work anywhere on the page, and the dialogs that open from buttons.

import { byId } from "./dom.js";

/** @param {{stop: () => void, start: () => void}} actions start: a new conversation */
export function listenToKeys({ stop, start }) {
  const shortcuts = byId("shortcuts");
  document.addEventListener("keydown", (event) => {
    const mod = event.ctrlKey || event.metaKey;
    if (event.key === "Escape") {
      if (!document.querySelector("dialog[open], .drawer-open")) stop();
    } else if (mod && event.shiftKey && event.key.toLowerCase() === "o") {
      event.preventDefault();
      start();
    } else if (mod && event.key === "/") {
      event.preventDefault();
      shortcuts.showModal();
    }
  });
  for (const name of ["settings", "shortcuts"]) {
    const dialog = byId(name);
    byId(`open-${name}`).addEventListener("click", () => dialog.showModal());
    dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (/** @type {Event} */ { target }) => {
      if (target === dialog) dialog.close(); // outside of it
    });
  }
  for (const key of document.querySelectorAll(".mod")) {
    if (navigator.platform.startsWith("Mac")) key.textContent = "⌘";
  }
}
