// One prompt and one seed through two to four checkpoints: only the weights differ.

import { get, stream } from "./api.js";
import { button, h } from "./dom.js";
import { asked } from "./settings.js";

const MOST = 4;

/** Return the part of the page, and what to call when it is opened. */
export function compare() {
  const menu = h("fieldset", {}, h("legend", {}, "Two to four checkpoints"));
  const field = h("textarea", { id: "compare-field", rows: 2, value: "Once upon a time" });
  const columns = h("div", { class: "columns" });
  const told = h("p", { class: "quiet", role: "status" });
  let running = null;
  const chosen = () => [...menu.querySelectorAll("input:checked")].map((box) => box.value);
  const limit = () => { for (const box of menu.querySelectorAll("input")) box.disabled = !box.checked && chosen().length >= MOST; };

  const write = async () => {
    if (running) { running.abort(); return; }
    const names = chosen();
    if (names.length < 2) { told.textContent = "Choose at least two."; return; }
    running = new AbortController();
    start.textContent = "Stop";
    const settings = asked();
    told.textContent = `Seed ${settings.seed} for all.`;
    const texts = names.map(() => h("div", { class: "text" }));
    columns.replaceChildren(...names.map((name, n) => h("section", { "aria-label": name }, h("h3", { class: "who" }, name), texts[n])));
    await Promise.all(names.map(async (model, n) => {
      try {
        await stream("/v1/completions", { ...settings, prompt: field.value, model },
          { signal: running.signal, take: (event) => texts[n].append(event.choices?.[0]?.text || "") });
      } catch (problem) {
        if (problem.name !== "AbortError") texts[n].append(h("p", { class: "problem" }, problem.message));
      }
    }));
    running = null;
    start.textContent = "Write";
  };

  const start = button("Write", write, { class: "main" });
  const opened = async () => {
    let found;
    try {
      found = (await get("/run/checkpoints")).data;
    } catch {
      return; // the curves above say what is wrong
    }
    const before = chosen();
    const some = found.filter((one) => one.kind === "checkpoint" || one.kind === "milestone");
    const all = some.length >= 2 ? some : found;
    const first = before.length ? before : [all[0], all[Math.floor(all.length / 2)], all.at(-1)].map((one) => one?.id);
    menu.replaceChildren(menu.firstElementChild, ...all.map((one) => h("label", {}, h("input", { type: "checkbox", value: one.id, checked: first.includes(one.id), change: limit }),
      ` ${one.id}${one.val_loss === null ? "" : ` (held-out loss ${one.val_loss.toFixed(2)})`}`)));
    limit();
  };
  const element = h("div", {}, menu, h("label", { for: "compare-field" }, "Prompt"), field, h("div", { class: "tools" }, start), told, columns);
  return { element, opened };
}
