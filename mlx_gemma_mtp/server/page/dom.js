// Makers of elements. All text goes in as text: nothing here reads HTML.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element with attributes, or properties for functions and booleans, and children.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Record<string, unknown>} [options]
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (typeof value === "function" || typeof value === "boolean")
      Object.assign(made, { [name]: value });
    else if (value !== null && value !== undefined) made.setAttribute(name, String(value));
  }
  made.append(
    ...children.filter((child) => child !== null && child !== undefined && child !== false),
  );
  return made;
}

/** One of the icons in index.html. @param {string} name */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/**
 * A button with an icon; without text, the label is read aloud and shown as a tip.
 * @param {string} name of the icon @param {string} label @param {() => void} onclick
 * @param {string} [text]
 */
export function button(name, label, onclick, text) {
  const tip = text ? {} : { title: label, "aria-label": label };
  return element("button", { type: "button", class: "quiet", onclick, ...tip }, icon(name), text);
}

/** The element of index.html with this id. @param {string} id @returns {any} */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`index.html has no #${id}`);
  return found;
}

/** Make a field as high as its text; style.css sets the limit. @param {HTMLTextAreaElement} field */
export function fit(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + field.offsetHeight - field.clientHeight}px`;
}

/** True if a key belongs to an input method that is composing. @param {KeyboardEvent} event */
export const composing = (event) => event.isComposing || event.keyCode === 229;

/** Copy a text. Works without HTTPS, too, where the newer interface doesn't exist. @param {string} text */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = element("textarea", { class: "unseen", readOnly: true });
  field.value = text;
  const back = /** @type {HTMLElement | null} */ (document.activeElement);
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  back?.focus();
  if (!copied) throw new Error("The browser refused to copy.");
}

/** A button that copies and says so. @param {() => string} text @param {string} label */
export function copyButton(text, label) {
  const made = button("copy", label, async () => {
    const copied = await copy(text()).then(
      () => true,
      () => false,
    );
    made.replaceChildren(icon(copied ? "check" : "cross"));
    made.setAttribute("aria-label", copied ? "Copied" : "The browser refused to copy");
    setTimeout(() => {
      made.replaceChildren(icon("copy"));
      made.setAttribute("aria-label", label);
    }, 1500);
  });
  return made;
}
