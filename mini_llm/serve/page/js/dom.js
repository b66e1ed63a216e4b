// Building the page: every text goes in as text, so that what a model or a file says can never become markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else if (name === "value") node.value = value;
    else if (name === "checked" || name === "disabled" || name === "hidden") node[name] = Boolean(value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Return an element; a function among the attributes listens to the event of that name. */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Return an element of a drawing. */
export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** Return a button that says what it does. */
export function button(text, click, attributes) {
  return h("button", { type: "button", click, ...attributes }, text);
}

const A_FRAME = 300; // small elements: 4,000 made at once took 200 ms, and a frame has 16

/** Call `make(n)` for n below `total`, so many in a frame as fit it, while `place` is on the page; returns `upTo(n)`, which makes those before n at once. */
export function inFrames(place, total, make) {
  let made = 0;
  const upTo = (n) => { for (; made < Math.min(n, total); made += 1) make(made); };
  const more = () => {
    if (!place.isConnected) return;
    upTo(made + A_FRAME);
    if (made < total) requestAnimationFrame(more);
  };
  upTo(A_FRAME);
  if (made < total) requestAnimationFrame(more);
  return upTo;
}

const GROUP = 2000; // characters of lines that are laid out and painted together, or not at all where they are out of view

/** A text that grows: a block for each line, so that a new piece has the browser lay out its own line, and not all before it. */
export class GrowingText {
  constructor(text) {
    this.element = h("div", { class: "text" });
    this.size = GROUP;
    this.append(text);
  }

  append(piece) {
    for (const part of piece.split(/(?<=\n)/)) {
      if (!part) continue;
      if (this.line) this.line.appendData(part); else this.begin(part);
      this.size += part.length;
      if (part.endsWith("\n")) this.line = null;
    }
  }

  begin(part) {
    this.line = document.createTextNode(part);
    if (this.size >= GROUP) {
      this.size = 0;
      this.group = h("div");
      this.element.append(this.group);
    }
    this.group.append(h("div", {}, this.line));
  }
}

/** Say something to a screen reader, and to nobody else. */
export function announce(text) {
  document.getElementById("live").textContent = text;
}

/** Show a line below the header, with buttons in it, or take it away. */
export function notice(text, ...buttons) {
  const line = document.getElementById("notice");
  line.replaceChildren(text || "", ...buttons);
  line.hidden = !text;
}

/** Return a token as one can see it: spaces, line ends and bare bytes have a sign of their own. */
export function visible(entry) {
  if (!entry.bytes || entry.bytes.length === 0) return `‹${entry.token}›`;
  if (entry.token.startsWith("bytes:")) {
    return entry.bytes.map((byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`).join("");
  }
  return controls(entry.token).replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
}

/** Return a text with its control characters made visible; those that turn the direction too. */
export function controls(text) {
  return text
    .replace(/\r/g, "␍").replace(/\n/g, "↵").replace(/\t/g, "⇥")
    .replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g,
      (sign) => `<U+${sign.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}>`);
}

/** Return a probability in percent, with as many digits as it deserves. */
export function percent(p) {
  if (p === null || p === undefined) return "–";
  return p >= 0.1 ? `${(100 * p).toFixed(0)} %` : p >= 0.0001 ? `${(100 * p).toPrecision(2)} %` : p > 0 ? "< 0.01 %" : "0 %";
}

/** Let the browser keep a file. */
export function download(name, text, type) {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
