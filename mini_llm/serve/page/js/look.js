// Look inside: an answer as its tokens; what comes instead of one is a branch of the same conversation, exact by ids.

import { h } from "./dom.js";
import { textOf } from "./generate.js";
import { inspector } from "./inspector.js";
import { save } from "./store.js";
import { isMarker, legend, tokenText } from "./tokens.js";
import { add } from "./tree.js";

/** The tab; `show(writer, node)` puts an answer in, `layers(ids, position)` opens the tab of layers. */
export class Look {
  constructor(layers) {
    this.layers = layers;
    this.text = h("div", {}, h("p", { class: "quiet" }, "Write something in Chat or Complete; the answer is taken apart here."));
    this.detail = h("div", { class: "detail" });
    this.element = h("div", { class: "two" }, h("div", {}, legend(), this.text), this.detail);
    document.addEventListener("answer", (event) => {
      this.pending = event.detail;
      if (this.element.offsetParent) this.opened();
    });
  }

  opened() {
    if (this.pending) this.show(this.pending.writer, this.pending.node);
  }

  show(writer, node) {
    this.pending = null;
    if (!node.inspect?.length) return;
    Object.assign(this, { writer, node });
    this.detail.replaceChildren(h("p", { class: "quiet" }, "Choose a token."));
    const { element } = tokenText(node.inspect, (n) => this.pick(n));
    this.text.replaceChildren(h("h2", {}, `The answer, ${node.inspect.length} tokens`), element);
  }

  pick(n) {
    const { node } = this;
    const branch = (ids, entries, more) => this.branch([...node.ids.slice(0, n), ...ids], [...node.inspect.slice(0, n), ...entries], more, isMarker(entries[0]));
    const taken = (one) => ({ ...node.inspect[n], ...one, rank: 1 + node.inspect[n].top.findIndex((other) => other.token_id === one.token_id), dart: null, taken: true });
    const whole = node.promptIds && node.ids.length === node.inspect.length;
    this.detail.replaceChildren(inspector(node.inspect[n], whole ? {
      take: (one) => branch([one.token_id], [taken(one)]),
      ban: (one) => branch([], [], { logit_bias: { [one.token_id]: -100 } }),
      branch: () => branch([], []),
      layers: () => this.layers([...node.promptIds, ...node.ids], node.promptIds.length + n),
    } : {}));
  }

  branch(ids, inspect, more, ends) {
    const { writer, node } = this;
    if (writer.running) return;
    const fresh = add(writer.conversation, node.parent, "assistant", textOf(node, inspect), { promptIds: node.promptIds, prefix: node.prefix, ids, inspect });
    if (ends) { // there is nothing after the token that was taken
      fresh.finish = "stop";
      save();
      writer.show();
      this.show(writer, fresh);
      return;
    }
    this.detail.replaceChildren(h("p", { class: "quiet", role: "status" }, "Writing the branch …"));
    writer.write(fresh, more);
  }
}
