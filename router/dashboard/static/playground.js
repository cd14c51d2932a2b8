// The playground: a picture, a question, the decision as one types, the answer when one asks.

import { answer, route } from "./api.js";
import { answerPanel } from "./answer.js";
import { decision } from "./decision.js";
import { el, icon, put, settled } from "./dom.js";
import { accepted, open, pictureOf } from "./pictures.js";
import { sides } from "./sides.js";
import { stage } from "./stage.js";

const TYPING_MS = 250; // of quiet before a decision is asked for
const LONGEST_ANSWER = 128; // tokens
const UPLOAD = "M8 10.5v-8M4.8 5.5 8 2.3l3.2 3.2M2.5 10.5v2a1 1 0 0 0 1 1h9a1 1 0 0 0 1-1v-2";

export function playground(root, service, examples) {
  const state = { picture: null, example: null, bound: null, route: null };
  let deciding = new AbortController();
  let asking = new AbortController();

  const scene = stage(service);
  const decided = decision(service, (bound) => { state.bound = bound; decide(); });
  const answered = answerPanel();
  const compared = sides(service, compare);

  const field = el("input", {
    class: "field", id: "question", name: "question", autocomplete: "off", enterkeyhint: "send",
    placeholder: "Ask something about the picture", maxlength: 2000,
    on: { input: () => typed() },
  });
  const button = el("button", { class: "button first", type: "submit" }, "Ask", el("kbd", { "aria-hidden": "true" }, "↵"));
  const hints = el("div", { class: "hints" });
  const form = el("form", { class: "inside", on: { submit: (event) => { event.preventDefault(); ask(); } } },
    el("label", { class: "unseen", for: "question" }, "Question"),
    el("div", { class: "asking" }, field, button), hints);

  const file = el("input", {
    type: "file", accept: accepted, class: "unseen", id: "file", tabindex: -1,
    on: { change: () => { if (file.files[0]) take(file.files[0], file.files[0].name); file.value = ""; } },
  });
  const choose = el("button", { class: "button right", type: "button", on: { click: () => file.click() } }, icon(UPLOAD), "Your picture");
  const name = el("span", { class: "fine" });
  const wrong = el("p", { class: "notice", role: "alert", hidden: true });
  const thumbs = examples.map((example) => el("li", {}, el("button", {
    type: "button", "aria-pressed": "false", "aria-label": `Example: ${example.name}`, title: example.name,
    on: { click: () => pick(example) },
  }, el("img", { src: source(example), alt: "", loading: "lazy", width: 60, height: 60 }))));

  const pictures = el("section", { class: "panel", "aria-labelledby": "picture-title" },
    el("header", {}, el("h2", { id: "picture-title" }, "Picture"), name, choose, el("label", { class: "unseen", for: "file" }, "Picture file"), file),
    scene.node);
  const shelf = el("div", { class: "inside" }, wrong, el("ul", { class: "examples", "aria-label": "Example pictures" }, thumbs),
    el("p", { class: "fine shelf-note" }, "Drop or paste a picture anywhere on this page. Right of the curtain, each cell is what becomes one token, drawn as the average of its colours. The model averages features, which hold more than colour, in the same cells."));
  pictures.append(shelf);

  const question = el("section", { class: "panel", "aria-label": "Question" }, form);
  put(root,
    el("div", { class: "lead" },
      el("h1", {}, "How many tokens does this question need?"),
      el("p", {}, `The same weights can look at a picture through ${listed(service.scales)} visual tokens. For every question the router predicts how few are enough, before the model runs, and keeps a promise about what that may cost.`)),
    el("div", { class: "play" },
      el("div", { class: "column" }, pictures),
      el("div", { class: "column" }, question, decided.node, answered.node),
      compared.node));

  function body() {
    const content = [
      { type: "image_url", image_url: { url: state.picture.url } },
      { type: "text", text: field.value.trim() },
    ];
    const m3 = state.bound === null ? {} : { max_regret: state.bound };
    return { model: "m3-auto", max_tokens: LONGEST_ANSWER, messages: [{ role: "user", content }], m3 };
  }

  function ready() {
    const possible = state.picture !== null && field.value.trim() !== "";
    button.setAttribute("aria-disabled", !possible);
    compared.enable(possible);
    return possible;
  }

  /** Forgets what was said about another question. */
  function changed() {
    asking.abort();
    answered.clear();
    compared.clear();
    state.route = null;
    ready();
  }

  async function decide() {
    deciding.abort();
    if (!ready()) return;
    const mine = (deciding = new AbortController());
    try {
      const route_ = await route(body(), mine.signal);
      state.route = route_;
      decided.show(route_);
      scene.choose(route_.images[0].scale);
      compared.choose(route_.images[0].scale);
    } catch (error) {
      if (error.name === "AbortError") return;
      decided.refuse(error);
      scene.choose(null);
    }
  }

  const later = settled(decide, TYPING_MS);
  function typed() {
    changed();
    later();
  }

  function expected() {
    const asked = field.value.trim();
    return state.example?.questions.find((one) => one.question === asked)?.answer ?? null;
  }

  async function ask() {
    if (!ready()) return field.focus();
    asking.abort();
    const mine = (asking = new AbortController());
    answered.begin();
    const deciding_ = state.route === null ? decide() : null;
    try {
      const on = { scale: (scale) => { scene.choose(scale); compared.choose(scale); }, text: answered.text };
      const got = await answer(body(), on, mine.signal);
      await deciding_;
      const finest = state.route?.images[0].options.at(-1).image_tokens ?? service.scales.at(-1);
      answered.done(got, finest, expected());
    } catch (error) {
      if (error.name !== "AbortError") answered.fail(error);
    }
  }

  async function compare() {
    if (!ready()) return;
    asking.abort();
    const mine = (asking = new AbortController());
    compared.enable(false);
    const all = compared.ask(body(), scene.seen, expected(), mine.signal);
    if (state.route) compared.choose(state.route.images[0].scale);
    await all;
    ready();
  }

  async function take(blob, called, example = null) {
    try {
      state.picture = await open(blob, called, service.max_image_bytes);
    } catch (error) {
      put(wrong, error.message);
      wrong.hidden = false;
      return;
    }
    wrong.hidden = true;
    state.example = example;
    put(name, example ? "" : called);
    examples.forEach((one, index) => thumbs[index].firstChild.setAttribute("aria-pressed", one === example));
    put(hints, (example?.questions ?? []).map((one) => el("button", { type: "button", on: { click: () => suggest(one.question) } }, one.question)));
    scene.show(state.picture.bitmap);
    changed();
    decide();
  }

  function suggest(text) {
    field.value = text;
    changed();
    decide();
  }

  async function pick(example) {
    const response = await fetch(source(example));
    if (example.questions.every((one) => one.question !== field.value)) field.value = example.questions[0].question;
    await take(await response.blob(), example.name, example);
  }

  document.addEventListener("paste", (event) => {
    const pasted = root.hidden ? null : pictureOf(event.clipboardData);
    if (pasted) take(pasted, pasted.name || "pasted picture");
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    pictures.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) pictures.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    pictures.classList.remove("dropping");
    if (root.hidden) return;
    const dropped = pictureOf(event.dataTransfer) ?? event.dataTransfer?.files[0];
    if (dropped) take(dropped, dropped.name);
  });
  ready();
  if (examples.length) pick(examples[0]);
  return {};
}

function source(example) {
  return `dashboard/examples/${encodeURIComponent(example.name)}`;
}

function listed(numbers) {
  return numbers.length < 2 ? `${numbers}` : `${numbers.slice(0, -1).join(", ")} or ${numbers.at(-1)}`;
}
