// The page: its tabs, its theme, the model that is asked, and what comes first.

import { h, notice } from "./dom.js";
import { Layers } from "./layers.js";
import { learn } from "./learn.js";
import { Look } from "./look.js";
import { reader } from "./read.js";
import { readRun, state } from "./state.js";
import { keep, kept } from "./store.js";
import { tabs } from "./tabs.js";
import { Writer } from "./writer.js";

const THEMES = ["system", "light", "dark"];
const theme = document.getElementById("theme");

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  theme.textContent = `◐ ${name}`;
  theme.setAttribute("aria-label", `Theme: ${name}`);
  keep("mini-llm-theme", name);
}

async function start() {
  try {
    const run = await readRun();
    const menu = document.getElementById("model");
    const names = [run.model, ...state.checkpoints.map((one) => one.id).filter((id) => id !== run.model)];
    menu.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    menu.value = state.model || run.model;
    chat.show();
    complete.show();
    return run;
  } catch (problem) {
    notice(problem.message);
    return null;
  }
}

setTheme(THEMES.includes(kept("mini-llm-theme", "system")) ? kept("mini-llm-theme", "system") : "system");
theme.addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % 3]));
document.getElementById("model").addEventListener("change", (event) => { state.model = event.target.value; });

const inside = new Layers();
const layers = (ids, position) => { inside.show(ids, position); go("layers"); };
const learning = learn();
const look = new Look(layers);
const lookAt = (writer, node) => { look.show(writer, node); go("look"); };
const chat = new Writer("chat", lookAt);
const complete = new Writer("complete", lookAt);
const go = tabs(document.getElementById("tabs"), document.getElementById("panels"), [
  ["chat", "Chat", chat.element, () => chat.show()],
  ["complete", "Complete", complete.element, () => complete.show()],
  ["look", "Look inside", look.element, () => look.opened()],
  ["read", "Read", reader(layers)],
  ["layers", "Layers", inside.element],
  ["learn", "Learn", learning.element, learning.opened],
]);
go("chat");
start().then((run) => go(run && !run.learnt_dialogue ? "complete" : "chat"));
document.addEventListener("server-back", start);
document.addEventListener("keydown", (event) => {
  const writer = [chat, complete].find((one) => one.element.offsetParent);
  if (!writer || !(event.ctrlKey || event.metaKey)) return;
  const does = event.key === "k" ? () => writer.side.find() : event.shiftKey && event.key === "O" ? () => writer.side.fresh() : null;
  if (!does) return;
  event.preventDefault();
  does();
});
