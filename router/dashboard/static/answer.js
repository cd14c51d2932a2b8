// One answer as it is written, and where its time and its tokens went.

import { el, put } from "./dom.js";
import { count, milliseconds, percent } from "./format.js";

const SOURCES = { miss: "vision tower", prefix: "the last question" }; // where features come from
const LONG = 120; // characters, from which an answer is set as a text
const PHASES = [
  ["routing", "router"], ["queue", "queue"], ["fetch", "cache"],
  ["encode", "vision tower"], ["prefill", "prefill"], ["decode", "decode"],
];

/** Whether two answers say the same, but for case, spaces and a full stop. */
export function same(one, other) {
  const plain = (text) => text.trim().replace(/\.$/, "").replace(/\s+/g, " ").toLowerCase();
  return plain(one) === plain(other);
}

/** Sets the text of an answer. */
export function say(node, text, busy) {
  put(node, text);
  node.classList.toggle("long", text.length > LONG);
  node.dataset.busy = busy;
  node.setAttribute("aria-busy", busy);
}

function timeline(m3) {
  const spent = { routing: m3.routing_ms, ...m3.timings_ms };
  const parts = PHASES.filter(([phase]) => spent[phase] !== undefined);
  return el("div", { class: "times" },
    el("div", { class: "track", "aria-hidden": "true" },
      parts.map(([phase]) => el("i", { "data-phase": phase, vars: { ms: Math.max(spent[phase], 0).toFixed(3) } }))),
    el("ul", { class: "legend" },
      parts.map(([phase, name]) => el("li", { "data-phase": phase }, el("i", { "aria-hidden": "true" }), `${name} ${milliseconds(spent[phase])}`))));
}

function fact(name, value, more) {
  return el("div", {}, el("dt", {}, name), el("dd", {}, value, more ? el("small", {}, ` ${more}`) : null));
}

function facts(got, finestTokens) {
  const image = got.usage.prompt_tokens_details.image_tokens;
  const saved = finestTokens - image;
  return el("dl", { class: "facts" },
    fact("first token", milliseconds(got.first ?? got.total)),
    fact("whole answer", milliseconds(got.total)),
    fact("visual tokens", count(image), saved > 0 ? `${percent(saved / finestTokens)} fewer` : "all of them"),
    fact("text tokens", `${count(got.usage.prompt_tokens - image)} in, ${count(got.usage.completion_tokens)} out`),
    fact("features from", SOURCES[got.m3.cache?.[0]] ?? `${got.m3.cache?.[0]}`));
}

/** The panel of the chosen scale's answer. */
export function answerPanel() {
  const said = el("p", { class: "said", "data-empty": "The answer appears here." });
  const judged = el("p", { class: "judged" });
  const measured = el("div");
  const live = el("div", { role: "status" }, said, judged);
  return {
    node: el("section", { class: "panel answer", "aria-labelledby": "answer-title" },
      el("header", {}, el("h2", { id: "answer-title" }, "Answer")),
      el("div", { class: "inside" }, live, measured)),
    clear() {
      say(said, "", false);
      put(judged);
      put(measured);
    },
    begin() {
      this.clear();
      say(said, "", true);
      said.dataset.empty = "";
    },
    text: (text) => say(said, text, true),
    done(got, finestTokens, expected) {
      say(said, got.text, false);
      said.dataset.empty = "(an empty answer)";
      if (expected) {
        const right = same(got.text, expected);
        put(judged, el("b", { class: right ? "good" : "bad" }, right ? "✓ right" : "✗ not right"), right ? "" : `, the example's answer is “${expected}”`);
      }
      put(measured, timeline(got.m3), facts(got, finestTokens));
    },
    fail(error) {
      say(said, "", false);
      said.dataset.empty = "";
      put(measured, el("p", { class: "notice" }, `${error.message} `, el("code", {}, error.code)));
    },
  };
}
