// Read: any text through the model's eyes, without a word written: its surprise, bits per byte and hardest tokens.

import { post } from "./api.js";
import { button, h, inFrames, visible } from "./dom.js";
import { inspector } from "./inspector.js";
import { state } from "./state.js";
import { bits, legend, tokenText } from "./tokens.js";

const HARDEST = 10;

async function measure(text) {
  const model = state.model || undefined;
  const [cut, scored] = await Promise.all([
    post("/tokenize", { prompt: text, return_token_strs: true, model }),
    post("/v1/completions", { prompt: text, echo: true, logprobs: 10, max_tokens: 0, return_token_ids: true, model }),
  ]);
  const { token_logprobs: logprobs, top_logprobs: top, tokens } = scored.choices[0].logprobs;
  return scored.choices[0].prompt_token_ids.map((tokenId, n) => ({
    token_id: tokenId, token: tokens[n], bytes: cut.token_bytes?.[n] || [], logprob: logprobs[n],
    top: Object.entries(top[n] || {}).sort((a, b) => b[1] - a[1]).slice(0, 10).map(([token, logprob]) => ({ token, logprob, bytes: bytesOf(token), token_id: token === tokens[n] ? tokenId : -1 })),
  }));
}

function bytesOf(token) {
  if (!token.startsWith("bytes:")) return [...new TextEncoder().encode(token)];
  return [...token.matchAll(/\\x([0-9a-f]{2})/g)].map((match) => parseInt(match[1], 16));
}

/** Return the tab; `layers(ids, position)` opens the tab of layers. */
export function reader(layers) {
  const field = h("textarea", { id: "read-field", rows: 5, placeholder: "Paste a text" });
  const result = h("div", { "aria-live": "polite" });
  const detail = h("div", { class: "detail" });
  const read = async () => {
    if (!field.value) return;
    result.replaceChildren(h("p", { class: "quiet" }, "Reading …"));
    detail.replaceChildren();
    try {
      const entries = await measure(field.value);
      const ids = entries.map((entry) => entry.token_id);
      const { element, choose } = tokenText(entries, (n) => detail.replaceChildren(inspector(entries[n], n ? { layers: () => layers(ids, n) } : {})));
      const cuts = h("p", { class: "cuts mono" });
      result.replaceChildren(h("p", {}, summary(entries)), legend(), element, h("h2", {}, "Its hardest tokens"), hardest(entries, choose),
        h("h2", {}, "How the tokenizer cuts it"), cuts);
      inFrames(cuts, entries.length, (n) => cuts.append(h("span", { title: `id ${entries[n].token_id}` }, visible(entries[n]))));
    } catch (problem) {
      result.replaceChildren(h("p", { class: "problem", role: "alert" }, problem.message));
    }
  };
  return h("div", { class: "two" }, h("div", {}, h("label", { for: "read-field" }, "Text"), field,
    h("div", { class: "tools" }, button("Read", read, { class: "main" })), result), detail);
}

function summary(entries) {
  const total = entries.reduce((sum, entry) => sum + (bits(entry.logprob) ?? 0), 0);
  const size = entries.reduce((sum, entry) => sum + entry.bytes.length, 0);
  const scored = entries.filter((entry) => entry.logprob !== null).length;
  if (!scored || !size) return "Too short to be measured.";
  return `${(total / size).toFixed(3)} bits per byte · ${(total / scored).toFixed(2)} bits per token · ${entries.length} tokens · ${size} bytes · ${(size / entries.length).toFixed(2)} bytes per token`;
}

function hardest(entries, choose) {
  const order = entries.map((entry, n) => n).filter((n) => entries[n].logprob !== null).sort((a, b) => entries[a].logprob - entries[b].logprob);
  return h("ol", {}, order.slice(0, HARDEST).map((n) => h("li", {},
    button(visible(entries[n]), () => choose(n, true), { class: "mono" }), ` ${bits(entries[n].logprob).toFixed(1)} bits`,
    entries[n].top[0] && ` (rather ${visible(entries[n].top[0])})`)));
}
