// The same question at every scale, side by side: what each can see, says, and takes.

import { answer } from "./api.js";
import { same, say } from "./answer.js";
import { el, put } from "./dom.js";
import { count, milliseconds, plural, rank } from "./format.js";
import { drawTokens, sharpen } from "./tokens.js";

function card(scale, scales) {
  const canvas = el("canvas", { role: "img", "aria-label": `What ${plural(scale, "token")} can see` });
  const mark = el("em");
  const said = el("p", { class: "said", "data-empty": "…" });
  const facts = el("dl");
  const node = el("article", { class: "side", "data-rank": rank(scale, scales) },
    el("h3", {}, String(scale), el("small", {}, scale === 1 ? "token" : "tokens"), mark), canvas, said, facts);
  return { scale, node, canvas, mark, said, facts, got: null };
}

function measured(got) {
  return [
    el("dt", {}, "first token"), el("dd", {}, milliseconds(got.first ?? got.total)),
    el("dt", {}, "whole answer"), el("dd", {}, milliseconds(got.total)),
    el("dt", {}, "visual tokens"), el("dd", {}, count(got.usage.prompt_tokens_details.image_tokens)),
  ];
}

function judgement(got, finest, expected) {
  if (expected) {
    const right = same(got.text, expected);
    return [el("dt", {}, "answer"), el("dd", { class: right ? "good" : "bad" }, right ? "✓ right" : "✗ not right")];
  }
  if (got === finest) return [];
  const alike = same(got.text, finest.text);
  return [el("dt", {}, "as the finest"), el("dd", { class: alike ? "good" : "bad" }, alike ? "✓ same" : "✗ another")];
}

/** The panel. `ask(body, ...)` answers `body` at all scales, one after the other, coarse to fine. */
export function sides(service, onAsk) {
  const { scales } = service;
  const row = el("div", { class: "sides" });
  const button = el("button", { class: "button right", type: "button", disabled: true, on: { click: onAsk } }, "Answer at every scale");
  const hint = el("p", { class: "inside fine" }, "One question, one set of weights, five ways of looking. Answers come one after the other, so that none slows another.");
  const panel = el("section", { class: "panel whole", "aria-labelledby": "sides-title" },
    el("header", {}, el("h2", { id: "sides-title" }, "Every scale, side by side"), button), hint, row);
  let cards = [];
  let seen = null;

  function draw() {
    for (const { canvas, scale } of cards) {
      if (seen !== null && sharpen(canvas)) drawTokens(canvas, seen.pixels, Math.sqrt(scale));
    }
  }
  new ResizeObserver(draw).observe(row);

  return {
    node: panel,
    enable(possible) { button.disabled = !possible; },
    clear() {
      cards = [];
      put(row);
      hint.hidden = false;
    },
    choose(scale) {
      for (const card of cards) {
        card.node.classList.toggle("chosen", card.scale === scale);
        put(card.mark, card.scale === scale ? "chosen" : "");
      }
    },
    async ask(body, view, expected, signal) {
      seen = view;
      cards = scales.map((scale) => card(scale, scales));
      put(row, cards.map(({ node }) => node));
      hint.hidden = true;
      draw();
      for (const one of cards) {
        say(one.said, "", true);
        const asked = { ...body, model: `m3-${one.scale}`, m3: {} };
        try {
          one.got = await answer(asked, { text: (text) => say(one.said, text, true) }, signal);
          say(one.said, one.got.text, false);
          one.said.dataset.empty = "(empty)";
          put(one.facts, measured(one.got));
        } catch (error) {
          if (error.name === "AbortError") return;
          say(one.said, "", false);
          one.said.dataset.empty = error.message;
        }
      }
      const finest = cards[cards.length - 1].got;
      for (const one of cards) {
        if (one.got && (finest || expected)) one.facts.append(...judgement(one.got, finest, expected));
      }
    },
  };
}
