// One token in full: how likely it was, twice; what else could have come; and ways to let that come instead.

import { dartLine } from "./dart.js";
import { button, h, percent, visible } from "./dom.js";
import { bits } from "./tokens.js";

/** Return the region on `entry`; `act(what, candidate)` for what: take, ban, branch, layers. Without `act.take` nothing can be changed. */
export function inspector(entry, act) {
  const surprise = bits(entry.logprob);
  const facts = [
    ["Token", visible(entry)], ["Id", entry.token_id], ["Bytes", (entry.bytes || []).map((byte) => byte.toString(16).padStart(2, "0")).join(" ") || "none"],
    ["Probability in the model", entry.logprob === null ? "–" : percent(Math.exp(entry.logprob))],
    ["After temperature and filters", entry.p_sampled === undefined ? "–" : percent(entry.p_sampled)],
    ["Surprise", surprise === null ? "–" : `${surprise.toFixed(2)} bits`],
    ["Rank", entry.rank ?? "–"], ["Entropy", entry.entropy === undefined ? "–" : `${(entry.entropy / Math.LN2).toFixed(2)} bits`],
  ].filter(([, value]) => value !== "–");
  const rows = (entry.top || []).map((one, n) => {
    const p = Math.exp(one.logprob);
    const change = act.take && h("td", {},
      button("Take", () => act.take(one), { "aria-label": `Take ${visible(one)} instead`, disabled: one.token_id === entry.token_id }),
      button("Ban", () => act.ban(one), { "aria-label": `Ban ${visible(one)} and go on from here` }));
    return h("tr", { class: one.kept === false ? "out" : one.token_id === entry.token_id ? "chosen" : "" },
      h("td", {}, n + 1), h("td", { class: "mono" }, visible(one)), h("td", {}, h("meter", { min: 0, max: 1, value: p, "aria-label": "model" }), ` ${percent(p)}`),
      one.p_sampled !== undefined && h("td", {}, one.kept ? percent(one.p_sampled) : "ruled out"), change);
  });
  return h("div", { class: "inspector", role: "region", "aria-label": `Token ${visible(entry)}`, tabindex: -1,
    keydown: (event) => { const one = entry.top?.[Number(event.key) - 1]; if (act.take && one && one.token_id !== entry.token_id) act.take(one); } },
  h("dl", {}, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
  h("div", { class: "tools" }, act.branch && button("Branch here", act.branch), act.layers && button("Layers", act.layers)),
  entry.p_sampled !== undefined && [h("h2", {}, "The dart"), dartLine(entry)],
  entry.top === undefined && h("p", { class: "quiet" }, "The browser kept no candidates of this token."),
  rows.length > 0 && h("div", { class: "wide" }, h("table", {}, h("caption", {}, "The likeliest tokens", act.take ? "; keys 1 to 9 take one" : ""),
    h("thead", {}, h("tr", {}, h("th", {}, "#"), h("th", {}, "Token"), h("th", {}, "Model"), rows[0].cells.length > 4 && h("th", {}, "Drawn from"), act.take && h("th", {}, "Instead"))),
    h("tbody", {}, rows))));
}
