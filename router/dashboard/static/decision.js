// Which scale was chosen, why, and what it was weighed against.

import { el, put } from "./dom.js";
import { bound, count, percent, plural, rank } from "./format.js";

const CONFIDENCE = "95%"; // docs/architecture.md, "Guarantee"

const REASONS = {
  no_predictor: "This model has no predictor yet, so every picture is looked at as finely as it can be.",
  pool: "No replica serves all scales that were chosen together, so this image got the next one that one of them has.",
  no_threshold: "No price of a token is certified for so strict a bound, so the finest scale answers.",
  forced: "The caller has named this scale.",
  floor: "The caller allows nothing coarser.",
  ceiling: "The caller allows nothing finer.",
  detail_low: "The caller has asked for low detail.",
  detail_high: "The caller has asked for high detail.",
  latency_budget: "Anything finer would take longer than the caller's latency budget.",
  context: "Anything finer would not fit the model's context.",
};

/** Why this scale, in one sentence, from the numbers it was chosen by. */
export function why(image) {
  if (image.reason !== "predicted") return REASONS[image.reason] ?? image.reason;
  const { options, scale } = image;
  const at = options.findIndex((option) => option.scale === scale);
  const points = (from, to) => (100 * (from.p_success - to.p_success)).toFixed(1);
  if (at === options.length - 1) {
    const best = options.slice(0, at).reduce((a, b) => (b.p_success >= a.p_success ? b : a));
    const lost = points(options[at], best);
    if (lost <= 0) return "No coarser scale is sure enough to answer what this one answers.";
    return `Detail matters: the best coarser scale, ${plural(best.scale, "token")}, is ${lost} points less likely to answer.`;
  }
  const finer = options.slice(at + 1).reduce((a, b) => (b.p_success > a.p_success ? b : a));
  const gain = points(finer, options[at]);
  if (gain < 0.05) return "Looking more closely is not expected to help.";
  const more = count(finer.image_tokens - options[at].image_tokens);
  return `${more} more tokens would make success ${gain} points more likely. That is less than they cost.`;
}

function meter(p) {
  if (p === null) return el("td", { class: "quiet" }, "not predicted");
  return el("td", {}, el("div", { class: "meter" }, el("i", { vars: { p: p.toFixed(4) }, "aria-hidden": "true" }), el("span", {}, percent(p, 1))));
}

function row(option, image, scales) {
  const chosen = option.scale === image.scale;
  return el("tr", { "data-rank": rank(option.scale, scales), class: chosen ? "chosen" : null },
    el("th", { scope: "row" }, String(option.scale), chosen ? el("span", { class: "unseen" }, " chosen") : null),
    meter(option.p_success),
    el("td", {}, count(option.image_tokens)),
    el("td", {}, option.cost_ms.toFixed(1)));
}

function promise(m3, finest) {
  if (m3.max_regret === null) return "No promise is made about this answer: the caller's own limits leave none.";
  return `Of 100 questions that ${finest} tokens answer, at most ${Number((m3.max_regret * 100).toPrecision(4))} are lost by looking more coarsely; certified with ${CONFIDENCE} confidence.`;
}

/** The panel. `show(route)` explains a decision; `refuse(error)` says why there is none. */
export function decision(service, onBound) {
  const { scales } = service;
  const finest = scales[scales.length - 1];
  const number = el("b", {}, "–");
  const chosen = el("div", { class: "chosen" }, number, el("span", {}, "visual", el("br"), "tokens"));
  const sentence = el("p", {}, "Choose a picture and ask something about it.");
  const fine = el("p", { class: "fine" });
  const verdict = el("div", { class: "verdict", role: "status" }, chosen, el("div", {}, sentence, fine));
  const rows = el("tbody");
  const table = el("table", { class: "ladder", hidden: true },
    el("caption", { class: "unseen" }, "What the choice was weighed against"),
    el("thead", {}, el("tr", {},
      el("th", { scope: "col" }, "scale"), el("th", { scope: "col" }, "predicted success"),
      el("th", { scope: "col" }, "tokens"), el("th", { scope: "col" }, "est. ms"))),
    rows);
  const promised = el("p", { class: "fine" });
  const own = `the service's own, ${bound(service.max_regret)}`;
  const select = el("select", { class: "small", id: "regret", on: { change: () => onBound(select.value === "" ? null : Number(select.value)) } },
    el("option", { value: "" }, own),
    service.regret_bounds.map((value) => el("option", { value }, bound(value))));
  const bounds = el("div", { class: "promise" }, el("label", { for: "regret" }, "Answers that may be lost"), select, promised);

  return {
    node: el("section", { class: "panel", "aria-labelledby": "decision-title" },
      el("header", {}, el("h2", { id: "decision-title" }, "Decision"), el("span", { class: "fine right" }, "before the model runs")),
      verdict, table, bounds),
    show(route) {
      const [image] = route.images;
      chosen.dataset.rank = rank(image.scale, scales);
      put(number, String(image.scale));
      put(sentence, why(image));
      const predictor = route.m3.predictor === null ? "no predictor" : `predictor ${route.m3.predictor.slice(0, 8)}`;
      put(fine, `${image.reason} · decided in ${route.m3.routing_ms.toFixed(1)} ms · ${predictor}`);
      put(rows, image.options.map((option) => row(option, image, scales)));
      put(promised, promise(route.m3, finest));
      table.hidden = false;
    },
    refuse(error) {
      delete chosen.dataset.rank;
      put(number, "–");
      put(sentence, error.message);
      put(fine, el("code", {}, error.code));
      table.hidden = true;
      put(promised);
    },
  };
}
