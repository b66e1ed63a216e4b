// Layers: what each layer would have said of one token, and where each head looked when it was written.

import { post } from "./api.js";
import { button, controls, h, percent, visible } from "./dom.js";
import { state } from "./state.js";
import { bits } from "./tokens.js";

/** The tab; `show(ids, position)` takes the token of that number apart. */
export class Layers {
  constructor() {
    this.field = h("textarea", { id: "layers-field", rows: 2, placeholder: "Once upon a time" });
    this.body = h("div", { "aria-live": "polite" });
    this.element = h("div", { class: "one" }, h("label", { for: "layers-field" }, "A text, for the token that would come next; or choose a token in Look inside or Read"),
      this.field, h("div", { class: "tools" }, button("Take apart", () => this.field.value && this.ask({ prompt: this.field.value }), { class: "main" })), this.body);
  }

  show(ids, position) {
    return this.ask({ token_ids: ids, position });
  }

  async ask(what) {
    this.what = what;
    this.body.replaceChildren(h("p", { class: "quiet" }, "Looking …"));
    try {
      const found = await post("/inspect", { ...what, top: 5, attention: true, model: state.model || undefined });
      if (this.what === what) this.body.replaceChildren(...this.lens(found), ...this.heads(found));
    } catch (problem) {
      this.body.replaceChildren(h("p", { class: "problem", role: "alert" }, problem.message));
    }
  }

  lens(found) {
    const known = found.token_id !== null;
    const title = known ? `Token ${found.position}: ${quoted(found.token)}` : `The token that comes next, number ${found.position}`;
    const rows = found.layers.map((layer) => h("tr", {}, h("th", { scope: "row" }, layer.layer),
      layer.top.map((one) => h("td", { class: one.token_id === found.token_id ? "mono hit" : "mono", title: percent(Math.exp(one.logprob)) },
        `${visible(one)} `, h("small", {}, percent(Math.exp(one.logprob))))),
      known && [h("td", {}, layer.rank), h("td", {}, percent(Math.exp(layer.logprob))), h("td", {}, bits(layer.logprob).toFixed(1))],
      h("td", {}, (layer.entropy / Math.LN2).toFixed(2))));
    return [h("h2", {}, title), h("p", { class: "quiet" }, "Each row reads the state after one layer through the model's last norm and head. The last row is the model's answer."),
      h("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "What each layer would have said" }, h("table", { class: "lens" }, h("caption", {}, "What each layer would have said"),
        h("thead", {}, h("tr", {}, h("th", {}, "Layer"), h("th", { colspan: found.layers[0].top.length }, "Its five likeliest"),
          known && [h("th", {}, "Rank of it"), h("th", {}, "Its probability"), h("th", {}, "Bits")], h("th", {}, "Entropy, bits"))),
        h("tbody", {}, rows)))];
  }

  heads(found) {
    const layer = h("input", { type: "range", id: "layer", min: 1, max: found.attention.length, value: found.attention.length, input: () => draw() });
    const head = h("select", { id: "head", change: () => draw() }, h("option", { value: "mean" }, "all, on average"),
      found.attention[0].map((_, n) => h("option", { value: n }, n + 1)));
    const text = h("div", { class: "text tokens" });
    const told = h("p", { class: "quiet" });
    const grid = h("table", { class: "grid" });
    const draw = () => {
      const heads = found.attention[layer.value - 1];
      const shares = head.value === "mean" ? heads[0].map((_, n) => heads.reduce((sum, one) => sum + one[n], 0) / heads.length) : heads[head.value];
      const most = Math.max(...shares);
      text.replaceChildren(...shares.map((share, n) => h("span", { class: `token s${Math.round((5 * share) / most)}`, title: percent(share) }, controls(found.prompt_tokens[n]))));
      const best = shares.map((_, n) => n).sort((a, b) => shares[b] - shares[a]).slice(0, 5);
      told.textContent = `Layer ${layer.value}, head ${head.value === "mean" ? "average" : Number(head.value) + 1} looked most at: ${best.map((n) => `${quoted(found.prompt_tokens[n])} (number ${n}) ${percent(shares[n])}`).join(", ")}.`;
    };
    grid.append(h("caption", {}, "Where each head looked most"), h("tbody", {}, found.attention.map((heads, l) => h("tr", {}, h("th", { scope: "row" }, `Layer ${l + 1}`), heads.map((shares, n) => {
      const at = shares.indexOf(Math.max(...shares));
      return h("td", {}, button(`${quoted(found.prompt_tokens[at])} ${percent(shares[at])}`, () => { layer.value = l + 1; head.value = n; draw(); },
        { class: `mono s${Math.round(5 * shares[at])}`, "aria-label": `Layer ${l + 1}, head ${n + 1}: ${found.prompt_tokens[at]}, ${percent(shares[at])}` }));
    })))));
    draw();
    return [h("h2", {}, "Where the heads looked"), h("div", { class: "tools" }, h("label", { for: "layer" }, "Layer"), layer, h("label", { for: "head" }, "Head"), head),
      text, told, h("div", { class: "wide" }, grid)];
  }
}

/** Return a token in quotes, with what one cannot see made visible. */
function quoted(token) {
  return `"${controls(token)}"`;
}
