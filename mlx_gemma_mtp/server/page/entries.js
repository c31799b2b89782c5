// The list of conversations: open, rename, save as a file, delete. A drawer on narrow screens.

import { button, byId, composing, element } from "./dom.js";

/**
 * @typedef {import("./store.js").Entry} Entry
 * @typedef {object} Actions
 * @property {(id: string) => void} open
 * @property {(id: string, title: string) => void} rename
 * @property {(id: string) => void} save as a file
 * @property {(id: string) => void} remove
 */

/** @param {Entry[]} entries @param {string} current @param {Actions} actions */
export function showEntries(entries, current, actions) {
  const place = byId("entries");
  if (place.querySelector("input")) return; // a title is being typed
  place.replaceChildren(...entries.map((entry) => entryView(entry, entry.id === current, actions)));
}

/** @param {Entry} entry @param {boolean} current @param {Actions} actions */
function entryView(entry, current, actions) {
  const { id, title } = entry;
  const date = new Date(entry.changed).toLocaleString("en", {
    dateStyle: "medium",
    timeStyle: "short",
  });
  const open = element(
    "button",
    { type: "button", class: "title", title: `${title}\n${date}`, onclick: () => actions.open(id) },
    title || "Untitled",
  );
  if (current) open.setAttribute("aria-current", "true");
  const rename = button("edit", `Rename ${title}`, () => view.replaceChildren(titleField()));
  const save = button("save", `Export ${title} as JSON`, () => actions.save(id));
  const remove = button("delete", `Delete ${title}`, () => actions.remove(id));
  const view = element(
    "li",
    { class: current ? "current" : "" },
    open,
    element("span", { class: "actions" }, rename, save, remove),
  );

  function titleField() {
    const field = element("input", { "aria-label": "Title", maxlength: 120 });
    field.value = title;
    const done = (/** @type {boolean} */ keep) => {
      field.onblur = null;
      view.replaceChildren();
      actions.rename(id, (keep && field.value.trim()) || title);
    };
    field.onblur = () => done(true);
    field.onkeydown = (event) => {
      if (composing(event) || !["Enter", "Escape"].includes(event.key)) return;
      event.preventDefault();
      event.stopPropagation();
      done(event.key === "Enter");
    };
    queueMicrotask(() => field.select());
    return field;
  }
  return view;
}

/** Let the buttons open and close the drawer. @returns {{close: () => void}} */
export function drawer() {
  const opener = byId("open-drawer");
  const set = (/** @type {boolean} */ open) => {
    document.body.classList.toggle("drawer-open", open);
    opener.setAttribute("aria-expanded", String(open));
    byId("main").inert = open;
    if (open) byId("close-drawer").focus();
  };
  const close = () => {
    if (!document.body.classList.contains("drawer-open")) return;
    set(false);
    opener.focus();
  };
  opener.addEventListener("click", () => set(true));
  byId("close-drawer").addEventListener("click", close);
  byId("shade").addEventListener("click", close);
  byId("drawer").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Escape") close();
  });
  // The list is no drawer on a wide screen.
  matchMedia("(min-width: 56rem)").addEventListener("change", () => set(false));
  return { close };
}
