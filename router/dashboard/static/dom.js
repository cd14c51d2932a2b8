// Elements from data. Text is only ever set as text; nothing here parses markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    } else if (name === "vars") {
      for (const [key, amount] of Object.entries(value)) node.style.setProperty(`--${key}`, amount);
    } else {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** An element with attributes (`on`: listeners, `vars`: custom properties) and children. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** Puts other children into a node. */
export function put(node, ...children) {
  node.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export function icon(path) {
  const line = { d: path, fill: "none", stroke: "currentColor", "stroke-width": 1.6 };
  const ends = { "stroke-linecap": "round", "stroke-linejoin": "round" };
  return svg("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, svg("path", { ...line, ...ends }));
}

/** Calls `work` when there was no call for `ms`. */
export function settled(work, ms) {
  let waiting;
  return (...given) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => work(...given), ms);
  };
}
