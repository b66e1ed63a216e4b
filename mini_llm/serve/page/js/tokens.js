// A text as its tokens, each tinted by surprise: five steps of one hue, and an underline that grows with them.

import { h, inFrames, visible } from "./dom.js";

const STEPS = [1, 2, 4, 6, 9]; // bits: a token of half the probability surprises by one

/** Return -log2 of a natural logarithm of a probability. */
export function bits(logprob) {
  return logprob === null || logprob === undefined ? null : -logprob / Math.LN2;
}

/** Tell whether a token is a sign of the model's own and no text, such as the one that ends texts. */
export function isMarker(entry) {
  return Boolean(entry) && !entry.bytes?.length;
}

/** Return the step of surprise, 0 to 5. */
export function tint(logprob) {
  const surprise = bits(logprob) ?? 0;
  return STEPS.filter((edge) => surprise >= edge).length;
}

/** Return the key to the tints. */
export function legend() {
  const words = ["< 1", "1–2", "2–4", "4–6", "6–9", "> 9"];
  return h("p", { class: "legend quiet" }, "Surprise in bits: ", words.map((word, n) => h("span", { class: `token s${n}` }, word)));
}

const BLOCK = 200; // tokens; a block out of view is neither laid out nor painted

function tokenSpan(entry, n) {
  const surprise = bits(entry.logprob);
  const label = `${visible(entry)}${surprise === null ? "" : `, ${surprise.toFixed(1)} bits`}`;
  const ends = entry.token.includes("\n") && entry.bytes?.length ? "\n" : "";
  const text = ends ? `${visible(entry)}${ends}` : entry.bytes?.length && !entry.token.startsWith("bytes:") ? entry.token : visible(entry);
  return h("span", { class: `token s${tint(entry.logprob)}`, role: "button", tabindex: n ? -1 : 0, "aria-label": label, title: label, "data-n": n }, text);
}

/** Return a text of `entries` (token, bytes, logprob), where `pick(n)` is called for the chosen one; arrows go through them. */
export function tokenText(entries, pick) {
  const spans = [];
  let block = null;
  let tabbed = 0;
  let chosen = null;
  const tab = (n) => { // one token is in the order of Tab
    spans[tabbed].tabIndex = -1;
    spans[n].tabIndex = 0;
    tabbed = n;
  };
  const choose = (n, focus) => {
    upTo(n + 1);
    tab(n);
    chosen?.removeAttribute("aria-current");
    chosen = spans[n];
    chosen.setAttribute("aria-current", "true");
    if (focus) chosen.focus();
    pick(n);
  };
  const ways = {
    ArrowRight: (at) => at + 1, ArrowLeft: (at) => at - 1, Home: () => 0, End: () => entries.length - 1,
    ArrowDown: (at) => below(spans, at, 1), ArrowUp: (at) => below(spans, at, -1),
  };
  const element = h("div", { class: "text tokens", role: "group", "aria-label": "Tokens",
    click: (event) => { const span = event.target.closest("[data-n]"); if (span) choose(Number(span.dataset.n)); },
    keydown: (event) => {
      const at = Number(document.activeElement.dataset.n ?? -1);
      if (at < 0) return;
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(at); }
      if (!(event.key in ways)) return;
      event.preventDefault();
      const next = Math.max(0, Math.min(entries.length - 1, ways[event.key](at)));
      upTo(next + 1);
      tab(next);
      spans[next].focus();
    } });
  const upTo = inFrames(element, entries.length, (n) => {
    if (!block || block.childElementCount >= BLOCK || spans[n - 1].textContent.endsWith("\n")) {
      block = h("div");
      element.append(block);
    }
    spans.push(tokenSpan(entries[n], n));
    block.append(spans[n]);
  });
  return { element, choose };
}

/** Return the number of the token on the next line, nearest in place. */
function below(spans, at, way) {
  const from = spans[at].getBoundingClientRect();
  for (let n = at + way, line = null, best = at; n >= -1 && n <= spans.length; n += way) {
    const box = spans[n]?.getBoundingClientRect();
    if (!box || (line !== null && Math.abs(box.top - line) > 2)) return best;
    if ((box.top - from.top) * way <= 2) continue;
    if (line === null || Math.abs(box.left - from.left) < Math.abs(spans[best].getBoundingClientRect().left - from.left)) best = n;
    line ??= box.top;
  }
  return at;
}
