// The messages of the open conversation, and where the reader is in them.

import { answerView } from "./answer-view.js";
import { byId } from "./dom.js";
import { questionView } from "./question-view.js";

/**
 * @typedef {import("./request.js").Message} Message
 * @typedef {import("./answer-view.js").Scene} Scene
 * @typedef {{view: HTMLElement, update: (scene: Scene) => void, open?: () => void}} View
 */

const NEAR = 48; // pixels from the bottom that count as being there

export class Thread {
  /** @param {import("./answer-view.js").Actions} actions @param {() => Scene} scene */
  constructor(actions, scene) {
    this.actions = actions;
    this.scene = scene;
    this.place = byId("thread");
    this.scroller = byId("scroller");
    this.newest = byId("newest");
    /** @type {Map<Message, View>} */
    this.views = new Map();
    /** @type {Set<Message>} */
    this.grown = new Set(); // answers to show again in the next frame
    this.following = true; // the bottom, as it moves down
    this.last = 0; // where the scroller was
    this.scroller.addEventListener("scroll", () => this.#look());
    this.newest.addEventListener("click", () => this.toBottom());
    new ResizeObserver(() => this.#follow()).observe(this.place);
    new ResizeObserver(() => this.#follow()).observe(this.scroller);
  }

  /** Show these messages. Those that were shown before keep their elements. @param {Message[]} messages */
  show(messages) {
    for (const [message, { view }] of this.views) {
      if (messages.includes(message)) continue;
      view.remove();
      this.views.delete(message);
    }
    const scene = this.scene();
    for (const message of messages) {
      let view = this.views.get(message);
      if (!view) {
        view =
          message.role === "assistant"
            ? answerView(message, this.actions)
            : questionView(message, this.actions);
        this.views.set(message, view);
        this.place.append(view.view);
      }
      view.update(scene);
    }
    byId("empty").hidden = messages.length > 0;
    this.#follow();
  }

  /** Show an answer that grew, at most once a frame. @param {Message} message */
  grow(message) {
    if (!this.grown.size) requestAnimationFrame(() => this.#draw());
    this.grown.add(message);
  }

  #draw() {
    const scene = this.scene();
    for (const message of this.grown) this.views.get(message)?.update(scene);
    this.grown.clear();
  }

  toBottom() {
    this.following = true;
    this.#follow();
  }

  /** Edit the reader's last message. */
  editLast() {
    const asked = [...this.views].filter(([{ role }]) => role === "user");
    asked.at(-1)?.[1].open?.();
  }

  #follow() {
    if (this.following) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#look();
  }

  #look() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const below = scrollHeight - scrollTop - clientHeight;
    if (below < 2 || (scrollTop > this.last && below < NEAR)) this.following = true;
    else if (scrollTop < this.last) this.following = false; // the reader went up
    this.last = scrollTop;
    this.newest.hidden = below < NEAR;
  }
}
