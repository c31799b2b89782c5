// The settings of the next answers: a dialog, two switches below the field, and where they are kept.

import { byId } from "./dom.js";
import { toolsIn } from "./request.js";

/**
 * @typedef {import("./request.js").Settings} Settings
 * @typedef {import("./store.js").Store} Store
 */

/** @type {Settings} */
const DEFAULTS = {
  system: "",
  temperature: null,
  top_p: null,
  top_k: null,
  max_tokens: null,
  seed: null,
  tools: "",
  thinking: false,
  drafts: true,
};

export class SettingsDialog {
  /** @param {Store} store @param {() => void} full called if there is no room to keep them */
  constructor(store, full) {
    this.store = store;
    this.full = full;
    /** @type {Settings} */
    this.current = { ...DEFAULTS, ...store.get("settings", {}) };
    this.key = store.get("key", "");
    this.dialog = /** @type {HTMLDialogElement} */ (byId("settings"));
    const fields = this.dialog.querySelectorAll("[name]");
    for (const field of /** @type {NodeListOf<HTMLInputElement>} */ (fields)) {
      field.value = field.name === "key" ? this.key : String(this.#value(field.name) ?? "");
      field.addEventListener("input", () => this.#read(field));
    }
    this.dialog.querySelector("form")?.addEventListener("submit", (event) => {
      event.preventDefault();
      this.dialog.close();
    });
    this.#toggle("thinking");
    this.#toggle("drafts");
  }

  open() {
    this.dialog.showModal();
  }

  /** @param {string} name */
  #value(name) {
    return this.current[/** @type {keyof Settings} */ (name)];
  }

  /** Take a field's value if it is valid; what is wrong is shown next to it. @param {HTMLInputElement} field */
  #read(field) {
    const problem = problemWith(field);
    let note = field.parentElement?.querySelector(".problem");
    if (problem && !note) {
      note = document.createElement("span");
      note.className = "problem";
      field.after(note);
    }
    if (note) note.textContent = problem;
    field.setAttribute("aria-invalid", String(Boolean(problem)));
    if (problem) return;
    if (field.name === "key") {
      this.key = field.value.trim();
      this.#save("key", this.key);
      return;
    }
    const empty = field.value.trim() === "";
    const value = field.type === "number" ? (empty ? null : Number(field.value)) : field.value;
    Object.assign(this.current, { [field.name]: value });
    this.#save("settings", this.current);
  }

  /** @param {"thinking" | "drafts"} name */
  #toggle(name) {
    const toggle = byId(name);
    const show = () => toggle.setAttribute("aria-pressed", String(this.current[name]));
    toggle.addEventListener("click", () => {
      this.current[name] = !this.current[name];
      show();
      this.#save("settings", this.current);
    });
    show();
  }

  /** @param {string} name @param {unknown} value */
  #save(name, value) {
    if (!this.store.set(name, value)) this.full();
  }
}

/** @param {HTMLInputElement} field */
function problemWith(field) {
  if (field.name !== "tools") return field.validationMessage;
  try {
    toolsIn(field.value);
    return "";
  } catch (error) {
    return /** @type {Error} */ (error).message;
  }
}
