// The column of conversations: open, new, search, delete, export and import.

import { button, h, notice } from "./dom.js";
import { conversations, exportAll, importText, remove } from "./store.js";
import { newConversation } from "./tree.js";

/** Return the column of a writer, and what can be done with it: draw it anew, begin anew, search. */
export function side(writer) {
  const list = h("ul", { class: "conversations" });
  const search = h("input", { type: "search", "aria-label": "Search conversations", placeholder: "Search (Ctrl+K)", input: () => show() });
  const file = h("input", { type: "file", accept: ".json,application/json", hidden: true, change: async () => {
    if (file.files[0]) notice(importText(await file.files[0].text()));
    file.value = "";
    show();
  } });
  const show = () => {
    const wanted = search.value.toLowerCase();
    const found = conversations.filter((one) => one.kind === writer.kind
      && (!wanted || one.nodes.some((node) => node.text.toLowerCase().includes(wanted))));
    list.replaceChildren(...found.map((one) => h("li", {},
      button(one.title || "Untitled", () => writer.open(one), { "aria-current": one === writer.conversation ? "true" : null, title: new Date(one.created).toLocaleString() }),
      button("×", () => forget(one), { "aria-label": `Delete ${one.title || "Untitled"}` }))));
  };
  const forget = (one) => {
    const restore = remove(one);
    const wasOpen = one === writer.conversation;
    if (wasOpen) writer.open(newConversation(writer.kind)); else show();
    const undo = button("Undo", () => {
      restore();
      notice("");
      if (wasOpen && !writer.conversation.nodes.length) writer.open(one); else show();
      list.querySelector("[aria-current=true]")?.focus();
    });
    notice(`Deleted: ${one.title || "Untitled"}`, undo, button("Dismiss", () => { notice(""); search.focus(); }));
    undo.focus();
  };
  const fresh = () => { writer.open(newConversation(writer.kind)); writer.field.focus(); };
  const find = () => { element.open = true; search.focus(); };
  const element = h("details", { class: "side", open: window.innerWidth >= 900 }, h("summary", {}, "Conversations"),
    button("New", fresh, { title: "Ctrl+Shift+O" }), search, list,
    h("div", { class: "tools" }, button("Export", exportAll), button("Import", () => file.click()), file));
  return { element, show, fresh, find };
}
