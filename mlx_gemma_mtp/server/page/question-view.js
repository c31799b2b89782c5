// A message of the reader, or the result of a call that they typed: shown, copied, edited.

import { button, composing, copyButton, element, fit } from "./dom.js";

/**
 * @typedef {import("./answer-view.js").Actions} Actions
 * @typedef {import("./request.js").Question | import("./request.js").Result} Message
 */

/** @param {Message} message @param {Actions} actions */
export function questionView(message, actions) {
  const name = message.role === "tool" ? `Result of ${message.name}` : "You";
  const heading = element("h2", { class: message.role === "tool" ? "result-of" : "unseen" }, name);
  const text = element("div", { class: "text" }, message.content);
  const edit = button("edit", "Edit", open);
  const foot = element(
    "div",
    { class: "foot" },
    element(
      "span",
      { class: "actions" },
      copyButton(() => message.content, "Copy"),
      edit,
    ),
  );
  const view = element(
    "article",
    { class: `question ${message.role}`, "aria-label": name },
    heading,
    text,
    foot,
  );

  function open() {
    const field = element("textarea", { "aria-label": "Edit your message", "data-typed": "" });
    field.value = message.content;
    const cancel = element("button", { type: "button", class: "quiet", onclick: close }, "Cancel");
    const send = element("button", { type: "submit" }, "Send");
    const form = element(
      "form",
      { class: "edit" },
      field,
      element("div", { class: "bar" }, cancel, send),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (field.value.trim()) actions.edit(message, field.value);
    });
    field.addEventListener("input", () => fit(field));
    field.addEventListener("keydown", (event) => {
      if (composing(event)) return;
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      } else if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    view.classList.add("editing");
    view.replaceChildren(heading, form);
    fit(field);
    field.focus();
  }

  function close() {
    view.classList.remove("editing");
    view.replaceChildren(heading, text, foot);
    edit.focus();
  }

  /** @param {import("./answer-view.js").Scene} scene */
  function update({ running }) {
    edit.disabled = running;
  }
  return { view, update, open };
}
