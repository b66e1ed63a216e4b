// Chat and Complete: one conversation in view, its messages with their branches, and the composer below.

import { GrowingText, announce, button, h } from "./dom.js";
import { generate } from "./generate.js";
import { asked, panel as settingsPanel } from "./settings.js";
import { side } from "./side.js";
import { cardLine, state } from "./state.js";
import { busy, conversations, include, save } from "./store.js";
import { add, newConversation, path, siblings, step } from "./tree.js";

const WORDS = {
  chat: { field: "Message", hint: "Say something", send: "Send", user: "You", assistant: "Model" },
  complete: { field: "Text to go on with", hint: "Once upon a time", send: "Complete", user: "Your text", assistant: "The model goes on" },
};

const NEAR = 40; // pixels from the end: so near, a reader follows what is written; who has scrolled up is left there

/** One tab that writes. `look(node)` opens an answer in the tab that looks inside. */
export class Writer {
  constructor(kind, look) {
    Object.assign(this, { kind, look, running: null, words: WORDS[kind] });
    this.conversation = conversations.find((one) => one.kind === kind) || newConversation(kind);
    this.log = h("div", { class: "log", role: "log", "aria-live": "off", "aria-label": "Conversation", tabindex: 0, scroll: () => this.scrolled() });
    this.field = h("textarea", { id: `${kind}-field`, rows: 2, placeholder: this.words.hint, input: () => this.grow(),
      keydown: (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); this.send(); } } });
    this.sender = button(this.words.send, () => (this.running ? this.stop() : this.send()), { class: "main" });
    this.status = h("p", { class: "status" });
    this.side = side(this);
    this.element = h("div", { class: "writer" },
      h("aside", {}, this.side.element, settingsPanel(kind)),
      h("section", { class: "middle" }, this.log,
        h("div", { class: "composer" }, h("label", { class: "unseen", for: this.field.id }, this.words.field), this.field, this.sender), this.status));
    document.addEventListener("conversations", ({ detail }) => { // another tab of this page has written
      if (detail.includes(this.conversation) && !this.log.querySelector("textarea")) this.show(); else this.side.show();
    });
    this.element.addEventListener("keydown", (event) => { if (event.key === "Escape" && this.running) this.stop(); });
  }

  grow() {
    this.field.rows = Math.min(10, Math.max(2, this.field.value.split("\n").length));
  }

  open(conversation) {
    this.stop();
    this.conversation = conversation;
    this.show();
  }

  show() {
    const nodes = path(this.conversation);
    this.log.replaceChildren(...(nodes.length ? nodes.map((node) => this.message(node)) : this.welcome()));
    this.side.show();
    this.tell();
    this.toEnd();
    requestAnimationFrame(() => this.toEnd()); // what was out of view has its true height only now
  }

  toEnd() {
    this.log.scrollTop = this.log.scrollHeight;
    this.top = this.log.scrollTop;
    this.follows = true;
  }

  /** By the reader's hand alone: what is laid out late puts the end out of reach as well, and must be followed. */
  scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.log;
    if (scrollHeight - scrollTop - clientHeight < NEAR) this.follows = true;
    else if (scrollTop < this.top) this.follows = false;
    this.top = scrollTop;
  }

  welcome() {
    const run = state.run;
    if (!run) return [h("p", { class: "quiet" }, "Loading the model …")];
    const lines = [h("p", { class: "quiet" }, cardLine(run))];
    if (!run.learnt_dialogue) {
      lines.unshift(h("p", { class: "warn" }, this.kind === "chat"
        ? "This is a base model: it has learnt no dialogue, and goes on with texts instead. Complete suits it better."
        : "This is a base model: it has learnt no dialogue. Begin a text, and it goes on."));
    }
    lines.push(...run.prompts.map((text) => button(text, () => { this.field.value = text; this.field.focus(); }, { class: "prompt" })));
    return lines;
  }

  message(node) {
    this.text = new GrowingText(node.text);
    const all = siblings(this.conversation, node);
    const go = (by) => { step(this.conversation, node, by); save(); this.show(); };
    const at = all.indexOf(node);
    const branches = all.length > 1 && h("span", { class: "branches" },
      button("‹", () => go(-1), { "aria-label": "Earlier branch", disabled: at === 0 }), ` ${at + 1}/${all.length} `,
      button("›", () => go(1), { "aria-label": "Later branch", disabled: at === all.length - 1 }));
    const own = node.role === "assistant";
    const tools = h("div", { class: "tools" }, branches, button("Edit", () => this.edit(node, element)),
      own && button("Regenerate", () => this.regenerate(node)),
      own && !this.conversation.nodes.some((one) => one.parent === node.id) && button("Continue", () => this.write(node)),
      own && node.inspect?.length > 0 && button("Look inside", () => this.look(this, node)));
    const ends = { length: node.stopReason === "context" ? "the context is full" : "the most tokens are reached", stopped: "stopped" };
    const note = node.problem ? h("p", { class: "problem", role: "alert" }, node.problem, " ", button("Retry", () => this.write(node)))
      : ends[node.finish] && h("p", { class: "quiet" }, `— ${ends[node.finish]}`);
    const element = h("article", { class: node.role, "aria-label": this.words[node.role] }, h("h2", { class: "who" }, this.words[node.role]), this.text.element, note, tools);
    return element;
  }

  edit(node, element) {
    if (this.running) return;
    const field = h("textarea", { "aria-label": "Edit", rows: Math.min(16, node.text.split("\n").length + 2), value: node.text });
    const done = () => {
      if (field.value === node.text) return this.show();
      const fresh = add(this.conversation, node.parent, node.role, field.value, node.role === "assistant" ? { edited: true } : {});
      save();
      return node.role === "user" ? this.answer(fresh) : this.show();
    };
    element.replaceChildren(field, h("div", { class: "tools" }, button("Keep as a new branch", done), button("Cancel", () => this.show())));
    field.focus();
  }

  send() {
    const text = this.field.value;
    if (!text.trim() || this.running) return;
    include(this.conversation);
    this.conversation.title ||= text.trim().slice(0, 60);
    const last = path(this.conversation).at(-1);
    const node = add(this.conversation, last ? last.id : null, "user", text);
    this.field.value = "";
    this.grow();
    this.answer(node);
  }

  answer(node) {
    this.write(add(this.conversation, node.id, "assistant", ""));
  }

  regenerate(node) {
    if (!this.running) this.write(add(this.conversation, node.parent, "assistant", ""));
  }

  stop() {
    this.running?.abort();
  }

  /** Write on at an answer: a new one, one that stopped, or a branch of another; `more` goes into the request. */
  async write(node, more) {
    if (this.running) return;
    const { conversation } = this;
    this.running = new AbortController();
    busy.add(conversation);
    this.show();
    const { text } = this;
    const nodes = path(conversation);
    let fresh = "";
    let sentence = "";
    const draw = () => { // once a frame, however many pieces have come
      if (!fresh) return;
      text.append(fresh);
      sentence += fresh;
      fresh = "";
      const end = Math.max(...[...".!?\n"].map((sign) => sentence.lastIndexOf(sign))) + 1;
      if (end) { announce(sentence.slice(0, end)); sentence = sentence.slice(end); }
      if (this.follows) this.toEnd();
      this.tell(node);
    };
    const changed = (piece) => {
      if (!fresh && piece) requestAnimationFrame(draw);
      fresh += piece;
    };
    this.sender.textContent = "Stop";
    this.log.setAttribute("aria-busy", "true");
    this.status.textContent = "Reading …";
    await generate(this.kind, node, nodes.slice(0, nodes.indexOf(node)), { ...asked(), ...more }, {
      signal: this.running.signal, changed, queued: (n) => { this.status.textContent = `${n} before you`; },
    });
    this.running = null;
    busy.delete(conversation);
    draw();
    announce(sentence);
    this.sender.textContent = this.words.send;
    this.log.removeAttribute("aria-busy");
    save();
    if (this.conversation === conversation) this.show();
    document.dispatchEvent(new CustomEvent("answer", { detail: { writer: this, node } }));
  }

  tell(node = path(this.conversation).findLast((one) => one.ids?.length)) {
    if (!node) { this.status.textContent = ""; return; }
    const used = (node.promptIds?.length || 0) + (node.ids?.length || 0);
    const parts = [`context ${used} of ${state.run?.context ?? "?"} tokens`];
    if (node.rate) parts.push(`${node.rate.toFixed(0)} tokens/s`);
    if (node.wait) parts.push(`first after ${node.wait.toFixed(0)} ms`);
    if (node.seed !== undefined) parts.push(`seed ${node.seed}`);
    this.status.textContent = parts.join(" · ");
  }
}
