// What the browser keeps: conversations and settings, nowhere but here; files to take them elsewhere.

import { download, notice } from "./dom.js";
import { checked } from "./tree.js";

const CONVERSATIONS = "mini-llm-conversations-1";
const VERSION = 1;

/** Return a kept value, or the default where there is none or it cannot be read. */
export function kept(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Keep a value; tells whether there was room. */
export function keep(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

const found = kept(CONVERSATIONS, []);
/** All conversations, newest first. */
export const conversations = (Array.isArray(found) ? found : []).filter((one) => checked(one));

const slim = (conversation) => ({ ...conversation, nodes: conversation.nodes.map(({ inspect, ...node }) => node) });

/** Keep all conversations; how tokens were drawn is kept for the newest only, as far as there is room. */
export function save() {
  const tries = [20, 5, 1, 0].map((full) => () => conversations.map((one, n) => (n < full ? one : slim(one))));
  if (!tries.some((make) => keep(CONVERSATIONS, make()))) {
    notice("The browser's storage is full: export the conversations, then delete some.");
  }
}

/** Forget a conversation. */
export function remove(conversation) {
  conversations.splice(conversations.indexOf(conversation), 1);
  save();
}

/** Offer all conversations as a JSON file, or one as text. */
export function exportAll() {
  download("mini-llm-conversations.json", JSON.stringify({ format: "mini-llm-conversations", version: VERSION, conversations: conversations.map(slim) }, null, 1), "application/json");
}

/** Take the conversations of a file in; returns what to say of it. */
export function importText(text) {
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    return "This file is no JSON: nothing was imported.";
  }
  if (data?.format !== "mini-llm-conversations") return "This file holds no conversations of this page: nothing was imported.";
  if (data.version !== VERSION) return `The file is of version ${JSON.stringify(data.version)}, and this page reads version ${VERSION}: nothing was imported.`;
  const all = (Array.isArray(data.conversations) ? data.conversations : []).map(checked);
  if (all.some((one) => one === null)) return "A conversation in the file is damaged: nothing was imported.";
  conversations.unshift(...all);
  save();
  return `${all.length} imported.`;
}
