// A curve drawn as one would on paper: two axes with round numbers, and a line for each series.

import { h, svg } from "./dom.js";

const WIDTH = 640, HEIGHT = 260, LEFT = 48, BOTTOM = 28, TOP = 10, RIGHT = 10;

function ticks(low, high) {
  const raw = (high - low) / 4 || 1;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * unit).find((size) => size >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(Number(at.toPrecision(6)));
  return found;
}

/** Draw `series`, a list of {name, points: [[x, y], ...]}; a curve of one point is a dot. */
export function curve(title, series) {
  const all = series.flatMap((one) => one.points);
  if (!all.length) return h("p", { class: "quiet" }, `${title}: nothing is known yet.`);
  const xs = all.map(([x]) => x), ys = all.map(([, y]) => y);
  const span = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const x = (value) => LEFT + ((value - span[0]) / (span[1] - span[0] || 1)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - span[2]) / (span[3] - span[2] || 1)) * (HEIGHT - BOTTOM - TOP);
  const lines = series.map((one, n) => svg("g", { class: `curve c${n}` },
    svg("polyline", { points: one.points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ") }),
    one.points.length <= 40 && one.points.map(([a, b]) => svg("circle", { cx: x(a), cy: y(b), r: 3 }, svg("title", {}, `step ${a}: ${b.toFixed(3)}`)))));
  const last = series.filter((one) => one.points.length).map((one) => `${one.name} ${one.points.at(-1)[1].toFixed(3)} at step ${one.points.at(-1)[0]}`).join(", ");
  return h("figure", {}, h("figcaption", {}, title, series.map((one, n) => h("span", { class: `key c${n}` }, ` ${n ? "- -" : "—"} ${one.name}`))),
    svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: ${last}` },
      ticks(span[2], span[3]).map((at) => svg("g", {}, svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(at), y2: y(at) }), svg("text", { x: LEFT - 6, y: y(at) + 4, class: "right" }, at))),
      ticks(span[0], span[1]).map((at) => svg("text", { x: x(at), y: HEIGHT - 8, class: "name middle" }, at)), lines),
    h("p", { class: "quiet" }, last));
}
