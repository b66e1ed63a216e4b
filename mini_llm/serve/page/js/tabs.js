// Tabs after the ARIA pattern: one is in the order of Tab, the arrows go to the others.

import { h } from "./dom.js";

/** Build the tabs of `[name, title, element, opened]`; returns how to go to one by its name. */
export function tabs(list, panels, entries) {
  const found = entries.map(([name, title, element, opened]) => {
    const tab = h("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}`, click: () => go(name) }, title);
    const panel = h("section", { role: "tabpanel", id: `panel-${name}`, "aria-labelledby": tab.id, hidden: true }, element);
    return { name, tab, panel, opened };
  });
  const go = (name) => {
    for (const one of found) {
      const on = one.name === name;
      one.tab.setAttribute("aria-selected", String(on));
      one.tab.tabIndex = on ? 0 : -1;
      one.panel.hidden = !on;
      if (on) one.opened?.();
    }
    document.title = `${found.find((one) => one.name === name).tab.textContent} · Mini-LLM`;
  };
  list.addEventListener("keydown", (event) => {
    const at = found.findIndex((one) => one.tab === document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: found.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    const next = found[(to + found.length) % found.length];
    next.tab.focus();
    go(next.name);
  });
  list.append(...found.map((one) => one.tab));
  panels.append(...found.map((one) => one.panel));
  return go;
}
