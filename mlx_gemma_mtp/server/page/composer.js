// The field at the bottom: what is typed there, and the buttons to send and stop.

import { byId, composing, fit } from "./dom.js";

const PAUSE_MS = 300; // of typing, after which the text is kept

/**
 * @typedef {object} Actions
 * @property {(text: string) => boolean} send false if it cannot be sent now: the text stays
 * @property {() => void} stop
 * @property {(text: string) => void} keep what was typed so far
 * @property {() => void} editLast
 */

export class Composer {
  /** @param {Actions} actions */
  constructor(actions) {
    this.actions = actions;
    /** @type {HTMLTextAreaElement} */
    this.field = byId("question");
    /** @type {HTMLFormElement} */
    const form = byId("composer");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    byId("stop").addEventListener("click", () => {
      this.field.focus();
      actions.stop();
    });
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    this.field.addEventListener("input", () => {
      fit(this.field);
      clearTimeout(timer);
      timer = setTimeout(() => this.keep(), PAUSE_MS);
    });
    this.field.addEventListener("keydown", (event) => {
      if (composing(event)) return;
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        this.#send();
      } else if (event.key === "ArrowUp" && !this.field.value) {
        event.preventDefault();
        actions.editLast();
      }
    });
  }

  keep() {
    this.actions.keep(this.field.value);
  }

  /** @param {string} text */
  fill(text) {
    this.field.value = text;
    fit(this.field);
  }

  /** @param {boolean} running true if there is an answer to stop */
  show(running) {
    byId("send").hidden = running;
    byId("stop").hidden = !running;
  }

  focus() {
    this.field.focus();
  }

  #send() {
    const text = this.field.value;
    if (!text.trim() || !this.actions.send(text)) return;
    this.fill("");
  }
}
