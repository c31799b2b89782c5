// The model that the server has loaded: its name and its context, asked for once, and after a
// failure.

import { byId } from "./dom.js";
import { tokens } from "./figures.js";
import { call } from "./stream.js";

export class Model {
  #name = "";

  /** @param {() => string} key the API key, may be empty */
  constructor(key) {
    this.key = key;
  }

  /** Return the name, and show it at the top. Raises a Failure. */
  async name() {
    if (this.#name) return this.#name;
    const response = await call("v1/models", { key: this.key() });
    const [model] = (await response.json()).data;
    this.#name = model.id;
    byId("model").textContent = model.id;
    const context = model.context_length;
    byId("model").title = context ? `A context of ${tokens(context)}` : "";
    return this.#name;
  }

  /** Ask again next time: the server may have another model now. */
  forget() {
    this.#name = "";
  }
}
