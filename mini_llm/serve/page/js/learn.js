// Learn: the run itself, live while it trains: its curves, its samples along a slider, and checkpoints side by side.

import { get } from "./api.js";
import { compare } from "./compare.js";
import { curve } from "./curve.js";
import { h } from "./dom.js";
import { cardLine, state } from "./state.js";

const PAUSE = 3000; // ms between two looks at a run that trains
const RESTING = 15000; // and at one that seems not to: a long step, or a run that will go on

/** Return the tab's element, and what to call when it is opened. */
export function learn() {
  const rows = [];
  const card = h("p", {});
  const curves = h("div", { class: "curves" });
  const picked = h("div", {});
  const comparing = compare();
  const element = h("div", { class: "one" }, h("h2", {}, "The run"), card, curves, h("h2", {}, "What it wrote while it trained"), picked,
    h("h2", {}, "One prompt through several checkpoints"), comparing.element);
  let timer = 0;
  const again = (pause) => { if (element.offsetParent) timer = setTimeout(look, pause); };
  const look = async () => {
    clearTimeout(timer);
    try {
      const last = rows.at(-1)?.step ?? 0; // asked for again: a step's held-out loss comes in a line of its own, later
      const [found, samples, run] = await Promise.all([get(`/run/metrics?after=${last - 1}`), get("/run/samples"), get("/run")]);
      const known = found.data.length ? rows.findIndex((row) => row.step >= last) : 0; // no such step any more: the run was set back
      rows.splice(Math.max(0, known), Infinity, ...found.data);
      state.run = run;
      card.textContent = `${cardLine(run)}${found.training ? " · training now" : ""}`;
      const points = (name) => rows.filter((row) => Number.isFinite(row[name])).map((row) => [row.step, row[name]]);
      curves.replaceChildren(curve("Loss", [{ name: "training", points: points("loss") }, { name: "held out", points: points("val_loss") }]),
        curve("Held-out bits per byte", [{ name: "bits per byte", points: points("val_bits_per_byte") }]));
      slide(picked, samples.data);
      again(found.training ? PAUSE : RESTING);
    } catch (problem) {
      card.textContent = problem.message;
      again(RESTING);
    }
  };
  document.addEventListener("server-back", () => { if (element.offsetParent) look(); });
  return { element, opened: () => { look(); comparing.opened(); } };
}

/** Put samples under a slider over their steps; where one stands at the newest, one stays there. */
function slide(place, samples) {
  if (!samples.length) {
    place.replaceChildren(h("p", { class: "quiet" }, "This run has written no samples."));
    return;
  }
  const steps = [...new Set(samples.map((one) => one.step))];
  const old = place.querySelector("input");
  const at = old && old.value !== old.max ? Math.min(Number(old.value), steps.length - 1) : steps.length - 1;
  const label = h("label", { for: "sample" });
  const texts = h("div", {});
  const slider = h("input", { type: "range", id: "sample", min: 0, max: steps.length - 1, value: at, input: () => show() });
  const show = () => {
    const step = steps[slider.value];
    label.textContent = `Step ${step.toLocaleString("en")}`;
    slider.setAttribute("aria-valuetext", label.textContent);
    texts.replaceChildren(...samples.filter((one) => one.step === step).map((one) => h("p", { class: "text sample" }, h("b", {}, one.prompt || ""), one.text)));
  };
  show();
  const focused = document.activeElement === old;
  place.replaceChildren(label, " ", slider, texts);
  if (focused) slider.focus();
}
