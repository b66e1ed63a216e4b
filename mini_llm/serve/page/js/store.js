// What the browser keeps: conversations and settings, nowhere but here; files to take them elsewhere.

import { download, notice } from "./dom.js";
import { checked } from "./tree.js";

const CONVERSATIONS = "mini-llm-conversations-1";
const VERSION = 1;
const FULL = "The browser has no room, or leave, to keep this: export the conversations, then delete some.";

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
const NEWEST = 20; // conversations whose tokens stay explained
const EXPLAINED = 4000; // tokens that stay explained, 150 bytes each: all is written anew at each change, and the browser gives 5 MB
const WITH_CANDIDATES = 600; // of them with their candidates, 2 kB each

/** Return a conversation whose newest answers keep how their tokens were drawn, as far as the budget goes. */
function lean(conversation, budget) {
  const nodes = conversation.nodes.toReversed().map((node) => {
    const n = node.inspect?.length;
    if (!n) return node;
    budget.explained -= n;
    budget.candidates -= n;
    if (budget.candidates >= 0) return node;
    const { inspect, ...rest } = node;
    return budget.explained >= 0 ? { ...rest, inspect: inspect.map(({ top, ...entry }) => entry) } : rest;
  });
  return { ...conversation, nodes: nodes.reverse() };
}

function write() {
  waiting = 0;
  for (const candidates of [WITH_CANDIDATES, 0]) {
    const budget = { candidates, explained: EXPLAINED };
    if (keep(CONVERSATIONS, conversations.map((one, n) => (n < NEWEST ? lean(one, budget) : slim(one))))) {
      if (document.getElementById("notice").textContent === FULL) notice("");
      return;
    }
  }
  if (keep(CONVERSATIONS, conversations.map(slim))) return;
  notice(FULL);
}

let waiting = 0;

/** Keep all conversations, when the page has time; at the latest when it is left. */
export function save() {
  waiting ||= setTimeout(write, 200);
}

window.addEventListener("pagehide", () => { if (waiting) write(); });

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
