// What the views of the records share: how far back, whose requests, and looking again by itself.

import { ApiError, get } from "./api.js";
import { el, put } from "./dom.js";
import { count } from "./format.js";

const AGAIN_MS = 5000;
export const RANGES = ["15m", "1h", "6h", "24h", "7d", "30d"];

/** The filters in the page's URL. */
export function filters() {
  return Object.fromEntries(new URLSearchParams(location.search));
}

/** Puts changed filters into the URL; null removes one. */
export function setFilters(changes) {
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === "") query.delete(name);
    else query.set(name, value);
  }
  history.replaceState(null, "", `${location.pathname}${query.size ? `?${query}` : ""}`);
}

function choice(name, label, all, onChange) {
  const select = el("select", { class: "small", "aria-label": label, on: { change: () => onChange({ [name]: select.value || null }) } });
  return {
    node: select,
    offer(values, chosen) {
      const listed = chosen && !values.includes(chosen) ? [...values, chosen] : values;
      const same = [...select.options].slice(1).map((option) => option.value).join("\n") === listed.join("\n");
      if (!same) put(select, el("option", { value: "" }, all), listed.map((value) => el("option", { value }, value)));
      select.value = chosen ?? "";
    },
  };
}

/**
 * A view that looks at the records again and again while it is shown.
 *
 * `title`, `lead` and `parts` (nodes) are its page, `draw(data)` fills them. `extra` names further
 * filters: `{name, label, all, values(data)}`; `keyless` views are of all API keys.
 */
export function looking(root, { view, title, lead, parts, draw, extra = [], keyless = false }) {
  const ranges = RANGES.map((range) => el("label", {},
    el("input", { type: "radio", name: `range-${view}`, value: range, on: { change: () => change({ range }) } }), el("span", {}, range)));
  const model = choice("served", "Model", "all models", change);
  const key = choice("key", "API key", "all keys", change);
  const more = extra.map((one) => ({ ...one, ...choice(one.name, one.label, one.all, change) }));
  const fresh = el("p", { class: "fine fresh", role: "status" });
  const wrong = el("p", { class: "notice", role: "alert", hidden: true });
  put(root,
    el("div", { class: "lead" }, el("h1", {}, title), el("p", {}, lead)),
    el("div", { class: "filters" },
      el("fieldset", { class: "ranges" }, el("legend", { class: "unseen" }, "How far back"), ranges),
      model.node, key.node, more.map((one) => one.node), fresh),
    wrong, parts);

  let waiting = null;
  let shown = false;
  let last = null;

  async function look() {
    clearTimeout(waiting);
    if (!shown) return;
    const asked = filters();
    const wanted = ["range", "served", "key", ...extra.map((one) => one.name)];
    const query = new URLSearchParams(wanted.filter((name) => asked[name]).map((name) => [name, asked[name]]));
    for (const label of ranges) label.firstChild.checked = label.firstChild.value === (asked.range ?? "1h");
    try {
      const data = await get(`dashboard/views/${view}?${query}`);
      wrong.hidden = true;
      last = data;
      model.offer(data.models, asked.served);
      key.offer(data.keys, asked.key);
      key.node.hidden = keyless || (data.keys.length === 0 && !asked.key);
      for (const one of more) one.offer(one.values(data), asked[one.name]);
      put(fresh, `${count(data.records)} records, live`);
      draw(data);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      put(wrong, `${error.message} `, el("code", {}, error.code));
      wrong.hidden = false;
    }
    waiting = setTimeout(look, document.visibilityState === "hidden" ? 60_000 : AGAIN_MS);
  }

  function change(changes) {
    setFilters(changes);
    look();
  }

  return {
    start() { shown = true; look(); },
    stop() { shown = false; clearTimeout(waiting); },
    redraw() { if (last) draw(last); },
  };
}
