// Decisions: the newest requests one by one, with what each was weighed against.

import { el, put, svg } from "./dom.js";
import { bound, count, milliseconds, percent, rank } from "./format.js";
import { looking } from "./looking.js";

const WIDE = 44;
const HIGH = 18;

/** Probabilities per scale as small bars; the chosen one is whole, the others are faint. */
function bars(image, scales) {
  const { p_success: p, tokens, tokens_per_scale: ladder } = image;
  if (!p) return el("span", { class: "quiet" }, "none");
  const width = WIDE / p.length;
  const words = p.map((value, at) => `${ladder[at]}: ${percent(value)}`).join(", ");
  return svg("svg", { class: "bars", viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `Predicted success, ${words}` },
    p.map((value, at) => svg("rect", {
      x: at * width + 0.75, width: width - 1.5, y: HIGH - Math.max(value * HIGH, 1), height: Math.max(value * HIGH, 1), rx: 1,
      fill: `var(--scale-${rank(scales[at], scales)})`, opacity: ladder[at] === tokens ? 1 : 0.32,
    })));
}

function fact(name, value) {
  return value === null || value === undefined || value === "" ? null : el("div", {}, el("dt", {}, name), el("dd", {}, value));
}

const time = (ms) => (ms === null || ms === undefined ? null : milliseconds(ms));

function details(row) {
  const phases = ["queue", "fetch", "encode", "prefill", "decode"].map((name) => fact(name, time(row[`${name}_ms`])));
  const stages = ["wait", "parse", "images", "features", "predict", "decide"].map((name) => fact(name, time(row[`${name}_ms`])));
  const images = row.images.map((image, at) => el("div", { class: "image" },
    el("h2", {}, row.images.length > 1 ? `Picture ${at + 1}` : "Picture"),
    el("dl", { class: "facts" },
      fact("size", `${image.width} × ${image.height}`), fact("scale", String(image.scale)), fact("reason", image.reason),
      fact("sufficient", image.p_sufficient === null ? null : percent(image.p_sufficient, 1)), fact("features from", image.cache),
      (image.p_success ?? []).map((p, place) => fact(`success at ${image.tokens_per_scale[place]}`, percent(p, 1))))));
  return el("div", { class: "opened" },
    el("dl", { class: "facts" },
      fact("request", el("code", {}, row.request_id)), fact("key", row.key), fact("model", row.model), fact("predictor", row.predictor && el("code", {}, row.predictor)),
      fact("replica", row.replica && el("code", {}, row.replica)), fact("regret bound", row.max_regret === null ? "void" : bound(row.max_regret)),
      fact("loosened from", row.loosened_from === null ? null : bound(row.loosened_from)),
      fact("tightened to", row.tightened_to === null ? null : row.tightened_to === 0 ? "the finest scale" : bound(row.tightened_to)), fact("pressure", row.pressure?.toFixed(2)),
      fact("tokens", row.prompt_tokens === null ? null : `${count(row.prompt_tokens)} in, ${count(row.completion_tokens ?? 0)} out`),
      fact("ended by", row.finish_reason)),
    images,
    el("h2", {}, "Behind the router"), el("dl", { class: "facts" }, phases),
    el("h2", {}, "The router's own work"), el("dl", { class: "facts" }, stages));
}

export function decisions(root, service) {
  const { scales } = service;
  const open = new Set();
  const list = el("ol", { class: "requests" });
  const none = el("p", { class: "nothing", hidden: true }, "No request in this time fits these filters.");

  function item(row) {
    const [image] = row.images;
    const scale = image ? row.images.map((one) => one.scale).join(", ") : "–";
    const body = el("div", { hidden: !open.has(row.request_id) }, open.has(row.request_id) ? details(row) : null);
    const at = new Date(row.arrived * 1000);
    const button = el("button", { type: "button", class: "line", "aria-expanded": open.has(row.request_id), on: { click: toggle } },
      el("span", { class: "when" }, el("time", { datetime: at.toISOString() }, at.toLocaleTimeString([], { hourCycle: "h23" }))),
      el("b", { "data-rank": image ? rank(Math.max(...row.images.map((one) => one.scale)), scales) : null }, scale),
      el("span", { class: "why" }, image ? [...new Set(row.images.map((one) => one.reason))].join(", ") : "not decided"),
      el("span", { class: "p" }, image ? bars(image, scales) : ""),
      el("span", { class: "how" }, row.code === "ok" ? el("span", { class: "good" }, "answered") : el("span", { class: "bad" }, row.code)),
      el("span", { class: "tok" }, row.image_tokens === null ? "" : `${count(row.image_tokens)} tok`),
      el("span", { class: "ttft" }, time(row.ttft_ms) ?? ""),
      el("span", { class: "total" }, milliseconds(row.total_ms)));
    function toggle() {
      const opening = !open.has(row.request_id);
      if (opening) open.add(row.request_id);
      else open.delete(row.request_id);
      button.setAttribute("aria-expanded", opening);
      put(body, opening ? details(row) : null);
      body.hidden = !opening;
    }
    return el("li", {}, button, body);
  }

  return looking(root, {
    view: "decisions",
    title: "Decisions",
    lead: "The newest requests: what was chosen and why, what it was weighed against, and what it took. Nothing here holds a picture or a question.",
    extra: [
      { name: "scale", label: "Scale", all: "all scales", values: () => scales.map(String) },
      { name: "reason", label: "Reason", all: "all reasons", values: (data) => data.reasons },
      { name: "code", label: "Outcome", all: "all outcomes", values: (data) => data.codes },
    ],
    parts: [el("section", { class: "panel", "aria-label": "Requests" },
      el("div", { class: "line titles", "aria-hidden": "true" },
        ["arrived", "scale", "reason", "success", "outcome", "visual", "first", "whole"].map((name) => el("span", {}, name))),
      list, none)],
    draw(data) {
      // A request that is open stays where the reader's focus is: only what is new is added.
      const focused = document.activeElement?.closest(".requests li")?.dataset.id;
      put(list, data.requests.map((row) => {
        const node = item(row);
        node.dataset.id = row.request_id;
        return node;
      }));
      none.hidden = data.requests.length > 0;
      if (focused) [...list.children].find((node) => node.dataset.id === focused)?.firstChild.focus({ preventScroll: true });
    },
  });
}
