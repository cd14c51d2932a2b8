// What views are laid out with: panels, tiles, heads of tables.

import { el, put } from "./dom.js";

export function panel(title, wide, ...inside) {
  return el("section", { class: `panel ${wide}`, "aria-label": title }, el("header", {}, el("h2", {}, title)), inside);
}

/** A figure with its name above and a line below. */
export function tile(name) {
  const value = el("dd", {}, "–");
  const under = el("dd", { class: "fine" });
  return {
    node: el("div", { class: "tile" }, el("dt", {}, name), value, under),
    set(shown, more) { put(value, shown); put(under, more); },
  };
}

export function head(...names) {
  return el("thead", {}, el("tr", {}, names.map((name) => el("th", { scope: "col" }, name))));
}
