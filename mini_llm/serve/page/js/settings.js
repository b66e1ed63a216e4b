// How to draw: the sampler's settings, kept in the browser; an empty field leaves it to the model's own default.

import { button, h } from "./dom.js";
import { keep, kept } from "./store.js";

const NAME = "mini-llm-settings";
const FIELDS = [
  ["temperature", "Temperature", { min: 0, max: 5, step: 0.05 }],
  ["top_p", "Top-p", { min: 0.01, max: 1, step: 0.01 }],
  ["top_k", "Top-k", { min: 0, step: 1 }],
  ["min_p", "Min-p", { min: 0, max: 1, step: 0.01 }],
  ["repetition_penalty", "Repetition penalty", { min: 0.1, max: 5, step: 0.05 }],
  ["max_tokens", "Most tokens", { min: 1, step: 1 }],
  ["seed", "Seed", { min: 0, step: 1 }],
];
const FIRST = { temperature: 0.8, max_tokens: 200 };
let values = { ...FIRST, ...kept(NAME, {}) };

/** Return the fields of a request; without a kept seed one is thrown. */
export function asked() {
  const body = {};
  for (const [name] of FIELDS) if (Number.isFinite(values[name])) body[name] = values[name];
  const stop = String(values.stop || "").split("\n").filter(Boolean).map((text) => text.replaceAll("\\n", "\n"));
  if (stop.length) body.stop = stop.slice(0, 16);
  body.seed ??= Math.floor(Math.random() * 2 ** 31);
  return body;
}

/** Return the system prompt; empty: none. */
export function systemPrompt() {
  return String(values.system || "");
}

/** Return the panel with all settings. */
export function panel(kind) {
  const id = (name) => `${kind}-${name}`;
  const inputs = {};
  const changed = (name, value) => { values[name] = value; keep(NAME, values); };
  const show = () => { for (const [name, input] of Object.entries(inputs)) input.value = values[name] ?? ""; };
  const rows = FIELDS.map(([name, label, limits]) => {
    inputs[name] = h("input", { type: "number", id: id(name), placeholder: name === "seed" ? "drawn" : "default", ...limits,
      input: (event) => changed(name, event.target.value === "" ? null : Number(event.target.value)) });
    return h("div", { class: "field" }, h("label", { for: id(name) }, label), inputs[name]);
  });
  inputs.stop = h("textarea", { id: id("stop"), rows: 2, input: (event) => changed("stop", event.target.value) });
  rows.push(h("label", { for: id("stop") }, "Stop at (one a line)"), inputs.stop);
  if (kind === "chat") {
    inputs.system = h("textarea", { id: id("system"), rows: 2, input: (event) => changed("system", event.target.value) });
    rows.push(h("label", { for: id("system") }, "System prompt"), inputs.system);
  }
  rows.push(button("Reset", () => { values = { ...FIRST }; keep(NAME, values); show(); }));
  show();
  return h("details", { class: "settings", toggle: show }, h("summary", {}, "Settings"), rows);
}
