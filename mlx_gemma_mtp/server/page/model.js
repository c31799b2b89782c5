// The model that the server has loaded: its name and its context, asked for once.

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
    const options = { key: this.key() };
    const models = await (await call("v1/models", options)).json();
    const props = await (await call("props", options)).json();
    this.#name = models.data[0].id;
    const context = props.default_generation_settings?.n_ctx;
    byId("model").textContent = this.#name;
    byId("model").title = context ? `A context of ${tokens(context)}` : "";
    return this.#name;
  }
}
