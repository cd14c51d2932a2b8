// The frontier: success against tokens on recorded traffic, and what another bound would change.

import { el, put, svg } from "./dom.js";
import { bound, count, percent, plural, rank } from "./format.js";
import { filters, looking, setFilters } from "./looking.js";

const HEIGHT = 380;
const EDGE = { left: 46, right: 22, top: 22, bottom: 40 };

/** Places of tokens (by their logarithm) and success in a drawing of this width. */
function axes(width, points) {
  const most = Math.max(...points.map((point) => point.tokens));
  const low = Math.max(0, Math.floor(Math.min(...points.map((point) => point.p)) * 20 - 0.5) / 20);
  const high = Math.min(1, Math.ceil(Math.max(...points.map((point) => point.p)) * 20 + 0.5) / 20);
  const wide = width - EDGE.left - EDGE.right;
  const tall = HEIGHT - EDGE.top - EDGE.bottom;
  return {
    x: (tokens) => EDGE.left + (wide * Math.log(Math.max(tokens, 1))) / Math.log(most),
    y: (p) => EDGE.top + tall * (1 - (p - low) / (high - low)),
    low, high, right: EDGE.left + wide, bottom: EDGE.top + tall,
  };
}

function text(x, y, said, anchor = "middle", kind = "") {
  return svg("text", { x, y, "text-anchor": anchor, class: kind }, said);
}

function path(points, at) {
  return points.map((point, index) => `${index ? "L" : "M"}${at.x(point.tokens).toFixed(1)} ${at.y(point.p).toFixed(1)}`).join("");
}

function drawing(width, data, picked, scales) {
  const at = axes(width, [...data.fixed, ...data.bounds, data.chosen]);
  const steps = [];
  const step = at.high - at.low > 0.5 ? 0.1 : 0.05;
  for (let p = at.low; p <= at.high + 1e-9; p += step) steps.push(p);
  const grid = steps.map((p) => [
    svg("line", { x1: EDGE.left, x2: at.right, y1: at.y(p), y2: at.y(p), class: "rule" }),
    text(EDGE.left - 8, at.y(p) + 4, percent(p), "end"),
  ]);
  const ticks = data.fixed.map((point) => text(at.x(point.tokens), at.bottom + 18, count(Math.round(point.tokens))));
  const fixed = data.fixed.map((point, place) => svg("g", { "data-rank": rank(scales[place], scales) },
    svg("circle", { cx: at.x(point.tokens), cy: at.y(point.p), r: 5.5, class: "fixed" }),
    text(at.x(point.tokens), at.y(point.p) + 20, `always ${scales[place]}`, place === 0 ? "start" : place === scales.length - 1 ? "end" : "middle", "name")));
  const bounds = data.bounds.map((point) => svg("circle", { cx: at.x(point.tokens), cy: at.y(point.p), r: 2.5, class: "bound" }));
  const now = data.chosen;
  return svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, class: "frontier", role: "img", "aria-label": `Predicted success against visual tokens: as chosen ${percent(now.p, 1)} at ${Math.round(now.tokens)} tokens` },
    grid.flat(), ticks, text((EDGE.left + at.right) / 2, HEIGHT - 4, "visual tokens a picture, on a logarithmic scale"),
    svg("path", { d: path(data.fixed, at), class: "hull" }), svg("path", { d: path(data.bounds, at), class: "curve" }), bounds, fixed,
    picked ? svg("circle", { cx: at.x(picked.tokens), cy: at.y(picked.p), r: 8, class: "picked" }) : null,
    svg("circle", { cx: at.x(now.tokens), cy: at.y(now.p), r: 5.5, class: "now" }),
    text(at.x(now.tokens), at.y(now.p) - 20, "as chosen", "middle", "name"));
}

function signed(value, unit, digits = 0) {
  if (Math.abs(value) < 0.5 * 10 ** -digits) return "no change";
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)} ${unit}`;
}

function mix(name, shares, scales) {
  const told = shares.map((share, place) => `${scales[place]}: ${percent(share)}`).join(", ");
  return el("div", { class: "mix" }, el("span", {}, name),
    el("div", { class: "track", role: "img", "aria-label": `${name}: ${told}` },
      shares.map((share, place) => (share > 0 ? el("i", { vars: { ms: share.toFixed(4), tone: `var(--scale-${rank(scales[place], scales)})` } }) : null))));
}

export function frontier(root, service) {
  const { scales } = service;
  const place = el("div", { class: "drawing" });
  const slider = el("input", { type: "range", min: 0, step: 1, id: "bound", on: { input: () => { setFilters({ bound: data.bounds[slider.value].bound }); draw(data); } } });
  const output = el("output", { for: "bound" });
  const tiles = el("dl", { class: "facts changes" });
  const mixes = el("div", { class: "mixes" });
  const note = el("p", { class: "fine" });
  const body = el("div", { class: "grid" },
    el("section", { class: "panel w7", "aria-label": "Frontier" }, el("header", {}, el("h2", {}, "Predicted success against tokens")), el("div", { class: "inside" }, place)),
    el("section", { class: "panel w5", "aria-label": "Another bound" }, el("header", {}, el("h2", {}, "What another bound would change")),
      el("div", { class: "inside another" }, el("label", { for: "bound" }, "Answers that may be lost ", output), slider, tiles, mixes, note)));
  const none = el("p", { class: "panel nothing" }, "No answered request in this time was decided with a predictor.");
  let data = null;

  new ResizeObserver(() => { if (data?.pictures) paint(); }).observe(place);

  function pickedBound() {
    const wanted = Number(filters().bound ?? data.max_regret);
    const fitting = data.bounds.filter((one) => one.bound <= wanted + 1e-9);
    return fitting.at(-1) ?? data.bounds[0] ?? null;
  }

  function paint() {
    put(place, drawing(Math.max(place.clientWidth, 280), data, pickedBound(), scales));
  }

  function draw(given) {
    data = given;
    body.hidden = !data.pictures;
    none.hidden = Boolean(data.pictures);
    if (!data.pictures) return;
    paint();
    const picked = pickedBound();
    slider.disabled = picked === null;
    if (picked === null) return;
    const { chosen } = data;
    slider.max = data.bounds.length - 1;
    slider.value = data.bounds.indexOf(picked);
    slider.setAttribute("aria-valuetext", bound(picked.bound));
    put(output, `≤ ${bound(picked.bound)}`);
    const fact = (name, value, more) => el("div", {}, el("dt", {}, name), el("dd", {}, value), el("dd", { class: "fine" }, more));
    put(tiles,
      fact("visual tokens", count(Math.round(picked.tokens)), signed(picked.tokens - chosen.tokens, "tokens")),
      fact("predicted success", percent(picked.p, 1), signed(100 * (picked.p - chosen.p), "points", 1)),
      fact("predicted regret", percent(picked.regret, 1), signed(100 * (picked.regret - chosen.regret), "points", 1)),
      fact("other scale for", percent(picked.changed), `of ${plural(data.pictures, "picture")}`));
    put(mixes, mix("as chosen", chosen.shares, scales), mix(`at ≤ ${bound(picked.bound)}`, picked.shares, scales),
      el("ul", { class: "legend" }, scales.map((scale) => el("li", { vars: { tone: `var(--scale-${rank(scale, scales)})` } }, el("i", { "aria-hidden": "true" }), String(scale)))));
    put(note, `The rule that is served, with the prices that the predictor in force has certified, on the probabilities recorded for the newest ${count(data.pictures)} pictures. The bound is certified for regret on the questions that the predictor was calibrated on; the regret here is what its probabilities say of this traffic, as if success at two scales were independent, which makes it too high.`);
  }

  return looking(root, {
    view: "frontier",
    title: "Frontier",
    lead: "How much success how many tokens buy, and what a stricter or looser bound would have done with the same pictures.",
    parts: [body, none],
    draw,
  });
}
