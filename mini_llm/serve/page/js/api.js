// Talking to the server: JSON, streams of events, the key where one is needed, and waiting for a server that went away.

import { h, notice } from "./dom.js";

const KEY = "mini-llm-key"; // in this tab's memory only
let given = null; // where the browser forbids even that, until the page is left

function key() {
  try { return sessionStorage.getItem(KEY); } catch { return given; }
}

function keepKey(value) {
  given = value;
  try { sessionStorage.setItem(KEY, value); } catch { /* forbidden */ }
}

/** What the server refused, or why it could not be reached. */
export class Problem extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

let asking = null; // several requests may be refused at once: they ask once

function askForKey() {
  asking ??= new Promise((done) => {
    const field = h("input", { type: "password", id: "key", autocomplete: "off" });
    const nobody = h("input", { type: "text", autocomplete: "username", hidden: true }); // browsers grumble without one
    const dialog = h("dialog", { close: () => { dialog.remove(); done(); } },
      h("form", { method: "dialog", submit: () => keepKey(field.value) }, nobody,
        h("label", { for: "key" }, "This server needs its key."), field, h("button", { type: "submit" }, "Use it")));
    document.body.append(dialog);
    dialog.showModal();
  }).finally(() => { asking = null; });
  return asking;
}

async function send(path, options) {
  for (let tries = 0; ; tries += 1) {
    const sent = key();
    const headers = { ...options.headers, ...(sent ? { authorization: `Bearer ${sent}` } : {}) };
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch (problem) {
      if (problem.name === "AbortError") throw problem;
      waitForServer();
      throw new Problem("The server cannot be reached. What is written here stays; try again when it is back.", 0);
    }
    if (answer.status === 401 && tries < 3) {
      if (sent === key()) await askForKey(); // else another request has been given it meanwhile
      continue;
    }
    if (answer.ok) return answer;
    const told = await answer.json().catch(() => ({}));
    const wait = answer.headers.get("retry-after");
    throw new Problem((told.error?.message || `the server answers ${answer.status}`) + (wait ? `; try again in ${wait} s` : ""), answer.status);
  }
}

let waiting = false;

async function waitForServer() {
  if (waiting) return;
  waiting = true;
  notice("The server is gone. Looking for it …");
  for (let pause = 1000; ; pause = Math.min(pause * 1.5, 15000)) {
    await new Promise((done) => setTimeout(done, pause));
    const answer = await fetch("/health").catch(() => null);
    if (answer?.ok) break;
  }
  waiting = false;
  notice("");
  document.dispatchEvent(new Event("server-back"));
}

/** GET a JSON document. */
export async function get(path) {
  return (await send(path, {})).json();
}

/** POST a JSON document. */
export async function post(path, body, signal) {
  const headers = { "content-type": "application/json" };
  return (await send(path, { method: "POST", headers, body: JSON.stringify(body), signal })).json();
}

/** POST, and hand each event's JSON to `take`; `queued` learns how many wait before us. */
export async function stream(path, body, { take, queued, signal }) {
  const headers = { "content-type": "application/json" };
  const answer = await send(path, { method: "POST", headers, body: JSON.stringify({ ...body, stream: true }), signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (problem) {
      if (problem.name === "AbortError") throw problem;
      waitForServer();
      throw new Problem("The server went away in the middle of the answer.", 0);
    }
    if (part.done) throw new Problem("The answer ended before its end.", 0);
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith(": queued")) queued?.(line.slice(8).trim());
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Problem(event.error.message, 500);
      take(event);
    }
  }
}
