// The throw that chose a token: all kept tokens lie end to end on a line from 0 to 1, and the dart fell into one's piece.

import { h, percent, svg, visible } from "./dom.js";

const WIDTH = 600;

/** Return the drawing of the line, and what it shows in words. */
export function dartLine(entry) {
  if (entry.dart === null || entry.dart === undefined) return h("p", { class: "quiet" }, "No dart was thrown: temperature 0 takes the likeliest.");
  const found = [...(entry.top || []).filter((one) => one.token_id !== entry.token_id), entry].filter((one) => one.kept && one.start !== null);
  const pieces = found.map((one) => svg("rect", { x: one.start * WIDTH, y: 18, width: Math.max(one.p_sampled * WIDTH, 1), height: 26,
    class: one.token_id === entry.token_id ? "piece chosen" : "piece" }, svg("title", {}, `${visible(one)} ${percent(one.p_sampled)}`)));
  const names = found.filter((one) => one.p_sampled * WIDTH > 8 * visible(one).length + 4).map((one) =>
    svg("text", { x: (one.start + one.p_sampled / 2) * WIDTH, y: 36, class: one.token_id === entry.token_id ? "name chosen" : "name" }, visible(one)));
  const x = entry.dart * WIDTH;
  const words = `The dart fell at ${entry.dart.toFixed(3)}, into ${visible(entry)}, whose piece goes from ${entry.start.toFixed(3)} to ${(entry.start + entry.p_sampled).toFixed(3)}.`;
  return h("div", {}, svg("svg", { viewBox: `-6 0 ${WIDTH + 12} 62`, class: "dart", role: "img", "aria-label": words },
    svg("rect", { x: 0, y: 18, width: WIDTH, height: 26, class: "rest" }), pieces, names,
    svg("path", { d: `M${x} 18 l-5 -12 h10 z M${x} 18 V50`, class: "tip" }),
    svg("text", { x: 0, y: 58, class: "end" }, "0"), svg("text", { x: WIDTH - 8, y: 58, class: "end" }, "1")),
  h("p", { class: "quiet" }, words, ` ${entry.n_kept.toLocaleString("en")} tokens were kept; those not among the ten likeliest are left plain.`));
}
