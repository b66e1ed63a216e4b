// What the browser keeps: conversations and settings, nowhere but here; files to take them elsewhere.

import { download, notice } from "./dom.js";
import { checked, newConversation } from "./tree.js";

const CONVERSATIONS = "mini-llm-conversations-1";
const GONE = "mini-llm-gone-1"; // ids of the last that were deleted, which no other tab of this page may bring back
const MOST_GONE = 500;
const goneHere = new Set(); // the same, should there be no room to keep it
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

const list = (name) => { const found = kept(name, []); return Array.isArray(found) ? found : []; };
/** All conversations, newest first. */
export const conversations = list(CONVERSATIONS).filter((one) => checked(one));
/** Those that are being written: what another tab knows of them must wait. */
export const busy = new Set();

/** Take in what other tabs of this page have kept; returns those that are no longer what they were here. */
function meet() {
  const gone = new Set([...list(GONE), ...goneHere]);
  const changed = [];
  for (const one of list(CONVERSATIONS).filter((other) => checked(other) && !gone.has(other.id))) {
    const own = conversations.find((other) => other.id === one.id);
    if (!own) conversations.push(one);
    else if (one.nodes.length > own.nodes.length && !busy.has(own)) changed.push(Object.assign(own, one));
  }
  const all = conversations.filter((one) => !gone.has(one.id) || busy.has(one)).sort((a, b) => b.created - a.created);
  conversations.splice(0, Infinity, ...all);
  return changed;
}

window.addEventListener("storage", (event) => {
  if (event.key === CONVERSATIONS) document.dispatchEvent(new CustomEvent("conversations", { detail: meet() }));
});

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
  meet();
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

/** Keep a conversation from now on. */
export function include(conversation) {
  if (conversations.includes(conversation)) return;
  if (list(GONE).includes(conversation.id)) conversation.id = newConversation().id; // deleted in another tab, and written on here
  conversation.created = Date.now();
  conversations.unshift(conversation);
}

/** Forget a conversation; returns what brings it back, under another id: by this one no tab keeps it any more. */
export function remove(conversation) {
  goneHere.add(conversation.id);
  keep(GONE, [...list(GONE), conversation.id].slice(-MOST_GONE));
  conversations.splice(conversations.indexOf(conversation), 1);
  save();
  return () => {
    conversation.id = newConversation(conversation.kind).id;
    conversations.push(conversation);
    conversations.sort((a, b) => b.created - a.created);
    save();
  };
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
