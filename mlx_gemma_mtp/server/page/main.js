// Puts the page together: the chat, what shows it, and what the reader can do.

import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { verdict } from "./comparison-view.js";
import { byId } from "./dom.js";
import { drawer, showEntries } from "./entries.js";
import { Failure } from "./failure.js";
import { line } from "./figures.js";
import { Model } from "./model.js";
import { announce, notify } from "./notices.js";
import { SettingsDialog } from "./settings.js";
import { listenToKeys } from "./shortcuts.js";
import { browserStorage, keyOf, Store } from "./store.js";
import { Thread } from "./thread.js";

/**
 * @typedef {import("./store.js").Conversation} Conversation
 * @typedef {import("./answer.js").Answer} Answer
 */

const FULL = "The browser's storage is full. Delete conversations to keep new ones.";

const { storage, lasts } = browserStorage();
const store = new Store(storage);
const settings = new SettingsDialog(store, () => notify(FULL));
const list = drawer();
const model = new Model(() => settings.key);

const chat = new Chat(store, {
  settings: () => settings.current,
  key: () => settings.key,
  model: () => model.name(),
  changed,
  grown: (answer) => thread.grow(answer),
  shortened: (before) =>
    notify("Later messages were removed.", {
      label: "Undo",
      run: () => chat.restore(before),
    }),
  ended,
  save,
});

const thread = new Thread(
  {
    regenerate: (answer) => started(chat.regenerate(answer)),
    compare,
    result: (id, text) => started(chat.result(id, text)),
    edit: (message, text) => started(chat.edit(message, text)),
    openSettings: () => settings.open(),
  },
  () => ({ openCalls: chat.openCalls, running: chat.running }),
);

const composer = new Composer({
  send,
  stop: () => chat.stop(),
  keep: keepTyped,
  editLast: () => {
    if (!chat.running) thread.editLast();
  },
});

/** @param {Conversation} conversation */
function changed(conversation) {
  thread.show(conversation.messages);
  composer.show(chat.running);
  store.set("open", conversation.id);
  document.title = conversation.title ? `${conversation.title} – mgm` : "mgm";
  refreshList();
}

function refreshList() {
  showEntries(store.entries(), chat.conversation.id, {
    open,
    rename,
    save: exportOne,
    remove: (id) => remove([id]),
  });
}

/** @param {string} text */
function send(text) {
  if (chat.running) return false;
  if (chat.openCalls.length) {
    notify("Type the result of the call first.");
    focusResult();
    return false;
  }
  keepTyped("");
  started(chat.send(text));
  return true;
}

/** Whose field below it is: all new conversations have the same. */
const typedFor = () => (chat.conversation.messages.length ? chat.conversation.id : "new");

/** @param {string} text */
function keepTyped(text) {
  if (!store.keepTyped(typedFor(), text)) notify(FULL);
}

/** Follow an answer that has just started. @param {Promise<void>} answering */
function started(answering) {
  thread.toBottom();
  focusField();
  announce("Answering…");
  return answering;
}

/** @param {Answer} answer */
async function compare(answer) {
  focusField();
  announce("Comparing…");
  await chat.compare(answer);
  announce(verdict(answer).textContent);
}

/** @param {Conversation} conversation @param {Answer} answer */
function ended(conversation, answer) {
  if (answer.failure) model.forget();
  if (conversation !== chat.conversation) {
    notify(`“${conversation.title}” has an answer.`, {
      label: "Open",
      run: () => open(conversation.id),
    });
  } else if (answer.failure) {
    announce(answer.failure.message);
  } else if (chat.openCalls.length) {
    announce(
      `The model calls ${answer.calls.map(({ name }) => name).join(", ")}. Type the result.`,
    );
    if (!composer.field.value) focusResult();
  } else {
    announce(answer.state === "stopped" ? "Stopped." : `The answer is complete. ${line(answer)}`);
  }
}

/** @param {Conversation} conversation */
function save(conversation) {
  const dropped = store.save(conversation);
  if (!dropped) {
    const run = () => download(conversation.title, conversation);
    notify("This conversation is too large for the browser to keep.", { label: "Export", run });
  } else if (dropped.length) {
    const titles = dropped.map((title) => `“${title}”`).join(", ");
    notify(`The browser's storage is full. Removed the oldest: ${titles}.`);
  }
}

/** Open a conversation, or start a new one. @param {string} [id] */
function open(id) {
  composer.keep();
  chat.open(id);
  composer.fill(store.typed(typedFor()));
  list.close();
  thread.toBottom();
  focusField();
}

/** @param {string} id @param {string} title */
function rename(id, title) {
  const found = chat.find(id);
  if (found && found.title !== title) save(Object.assign(found, { title }));
  changed(chat.conversation);
}

/** @param {string[]} ids */
function remove(ids) {
  const before = ids.map((id) => chat.find(id)).filter((found) => found !== null);
  for (const id of ids) {
    chat.forget(id);
    store.remove(id);
  }
  if (ids.includes(chat.conversation.id)) open();
  else refreshList();
  if (!before.length) return;
  const [{ title }] = before;
  const what = before.length === 1 ? `“${title}” was` : `${before.length} conversations were`;
  const run = () => {
    before.forEach(save);
    open(before[0].id);
  };
  notify(`${what} deleted.`, { label: "Undo", run });
}

/** @param {string} id */
function exportOne(id) {
  const found = chat.find(id);
  if (found) download(found.title, found);
}

/** @param {string} title @param {unknown} content */
function download(title, content) {
  const blob = new Blob([JSON.stringify(content, null, 2)], { type: "application/json" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `mgm ${title.replace(/[^\p{L}\p{N} -]/gu, "").trim()}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Show who answers. A failure offers a way out. */
async function greet() {
  try {
    await model.name();
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    const openSettings = { label: "Open the settings", run: () => settings.open() };
    notify(error.message, error.needsKey ? openSettings : { label: "Retry", run: greet });
  }
}

// Not on a phone: its keyboard would cover the answer.
function focusField() {
  if (matchMedia("(hover: hover)").matches) composer.focus();
}

function focusResult() {
  const field = /** @type {HTMLElement | null} */ (
    document.querySelector(".result:not([hidden]) textarea")
  );
  field?.focus();
}

function exportAll() {
  const all = store.entries().map(({ id }) => chat.find(id));
  download("conversations", all);
}

function removeAll() {
  settings.dialog.close();
  remove(store.entries().map(({ id }) => id));
}

/** Keep what is on the page, which is left now. */
function leave() {
  composer.keep();
  for (const { conversation, abort } of chat.runs.values()) {
    store.save(conversation);
    abort.abort(); // otherwise the browser does, which would look like a broken connection
  }
}

byId("new").addEventListener("click", () => open());
byId("export-all").addEventListener("click", exportAll);
byId("delete-all").addEventListener("click", removeAll);
listenToKeys({ stop: () => chat.running && chat.stop(), start: () => open() });
window.addEventListener("pagehide", leave);
window.addEventListener("beforeunload", (event) => {
  // An edit or a result that was not sent would be lost.
  const fields = /** @type {NodeListOf<HTMLTextAreaElement>} */ (
    document.querySelectorAll("[data-typed]")
  );
  if ([...fields].some((field) => field.checkVisibility() && field.value !== field.defaultValue))
    event.preventDefault();
});
window.addEventListener("storage", ({ key, newValue }) => {
  // Another tab changed a conversation.
  store.reread();
  const { id } = chat.conversation;
  if (newValue && key === keyOf(id) && !chat.running) chat.open(id);
  else refreshList();
});

chat.open(store.get("open", ""));
composer.fill(store.typed(typedFor()));
focusField();
if (!lasts) notify("This browser keeps nothing for this page: conversations end with this tab.");
greet();
