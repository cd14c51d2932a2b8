// The picture, and over it what a scale can see: a curtain between both, and the scales below.

import { el, put, svg } from "./dom.js";
import { plural, rank } from "./format.js";
import { drawPicture, drawTokens, sharpen, view } from "./tokens.js";

const GLYPH = 24;

/** A small grid with as many cells as the scale has, as a picture of the scale. */
function glyph(scale) {
  const cells = Math.sqrt(scale);
  const lines = [];
  for (let line = 1; line < cells; line++) {
    const at = (line * GLYPH) / cells;
    lines.push(`M${at} 0V${GLYPH}M0 ${at}H${GLYPH}`);
  }
  const width = Math.min(1.4, GLYPH / cells / (cells > 6 ? 4.5 : 3));
  return svg(
    "svg",
    { class: "dots", viewBox: `0 0 ${GLYPH} ${GLYPH}`, "aria-hidden": "true" },
    svg("rect", { width: GLYPH, height: GLYPH, rx: 3, fill: "currentColor" }),
    svg("path", { d: lines.join("") || "M0 0", stroke: "var(--surface)", "stroke-width": width }),
  );
}

/** The stage. `show(bitmap)` puts a picture on it, `choose(scale)` marks what was chosen. */
export function stage(service) {
  const { scales } = service;
  const canvas = el("canvas", { role: "img", "aria-label": "No picture yet" });
  const wipe = el("input", {
    class: "wipe", type: "range", min: 0, max: 100, value: 50,
    "aria-label": "Curtain between the picture and its tokens",
  });
  const bar = el("div", { class: "bar" });
  const tag = el("span", { class: "tag right" });
  const frame = el("div", { class: "stage" }, canvas, wipe, bar, el("span", { class: "tag left" }, "picture"), tag);

  let seen = null;
  let shown = scales[Math.floor(scales.length / 2)];
  let picked = false; // by whoever looks, so that decisions no longer move it

  function draw() {
    if (seen === null || !sharpen(canvas)) return;
    drawPicture(canvas, seen.square);
    drawTokens(canvas, seen.pixels, Math.sqrt(shown), wipe.value / 100);
  }

  function label() {
    const cells = Math.sqrt(shown);
    frame.style.setProperty("--at", `${wipe.value}%`);
    put(tag, plural(shown, "token"));
    wipe.setAttribute("aria-valuetext", `${wipe.value}% picture, the rest as ${plural(shown, "token")}`);
    if (seen === null) return;
    canvas.setAttribute("aria-label", `The picture, and its ${cells} by ${cells} cells averaged: what ${plural(shown, "token")} can see`);
  }

  const choices = scales.map((scale) => {
    const mark = el("span", { class: "mark" });
    const radio = el("input", {
      type: "radio", name: "shown-scale", value: scale, checked: scale === shown,
      "aria-label": plural(scale, "token"),
      on: { change: () => { picked = true; show(scale); } },
    });
    const node = el("label", { "data-rank": rank(scale, scales) }, radio, glyph(scale), el("span", {}, String(scale)), mark);
    return { scale, radio, mark, node };
  });

  function show(scale) {
    shown = scale;
    for (const choice of choices) choice.radio.checked = choice.scale === scale;
    label();
    draw();
  }

  wipe.addEventListener("input", () => { label(); draw(); });
  new ResizeObserver(draw).observe(frame);
  label();

  return {
    node: el("div", {}, frame,
      el("fieldset", { class: "scales" }, el("legend", { class: "unseen" }, "What this many tokens can see"), choices.map((choice) => choice.node))),
    get seen() { return seen; },
    show(bitmap) {
      seen = view(bitmap, service.tiled);
      picked = false;
      label();
      draw();
    },
    choose(scale) {
      for (const choice of choices) put(choice.mark, choice.scale === scale ? "chosen" : "");
      if (!picked && scale !== null) show(scale);
    },
  };
}
