// The page's frame: who looks, how it looks, whether the service is there.

import { ApiError, get, hasKey, useKey } from "./api.js";
import { cost } from "./cost.js";
import { decisions } from "./decisions.js";
import { el, icon, put } from "./dom.js";
import { plural } from "./format.js";
import { frontier } from "./frontier.js";
import { filters } from "./looking.js";
import { playground } from "./playground.js";
import { quality } from "./quality.js";

const LOOK_EVERY_MS = 10_000;
const THEMES = ["system", "light", "dark"];
const ICONS = {
  system: "M2.5 3.5h11v7h-11zM6 13h4",
  light: "M8 5.2A2.8 2.8 0 1 0 8 10.8 2.8 2.8 0 1 0 8 5.2M8 1.5v1.2M8 13.3v1.2M1.5 8h1.2M13.3 8h1.2M3.4 3.4l.9.9M11.7 11.7l.9.9M3.4 12.6l.9-.9M11.7 4.3l.9-.9",
  dark: "M13.5 9.6A6 6 0 0 1 6.4 2.5 6 6 0 1 0 13.5 9.6",
};

const VIEWS = { playground: "Playground", cost: "Cost and latency", quality: "Quality", decisions: "Decisions", frontier: "Frontier" };
const MAKERS = { cost, quality, decisions, frontier };

const view = document.getElementById("view");
const state = document.getElementById("state");
const keyButton = document.getElementById("key");
const themeButton = document.getElementById("theme");
const dialog = document.getElementById("ask-key");

function showTheme() {
  const theme = document.documentElement.dataset.theme ?? "system";
  put(themeButton, icon(ICONS[theme]));
  themeButton.setAttribute("aria-label", `Theme: ${theme}`);
  themeButton.title = `Theme: ${theme}`;
}

function nextTheme() {
  const now = document.documentElement.dataset.theme ?? "system";
  const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
  if (next === "system") {
    delete document.documentElement.dataset.theme;
    localStorage.removeItem("m3-theme");
  } else {
    document.documentElement.dataset.theme = next;
    localStorage.setItem("m3-theme", next);
  }
  showTheme();
  made[current]?.redraw?.();
}

function say(how, words) {
  if (state.dataset.state === how && state.lastElementChild.textContent === words) return;
  state.dataset.state = how;
  state.lastElementChild.textContent = words;
}

async function look() {
  if (document.visibilityState === "hidden") return;
  try {
    const told = await (await fetch("readyz")).json();
    const { answering } = told.components?.replicas ?? {};
    if (told.status !== "ready") say("down", "not ready");
    else say("ready", `${told.model} · ${answering ? plural(answering, "replica") : "ready"}`);
  } catch {
    say("down", "not reachable");
  }
}

/** Asks for a key until the service knows it. Gives false if whoever looks gives up. */
function askForKey(refused) {
  document.getElementById("key-refused").hidden = !refused;
  const field = document.getElementById("key-field");
  field.value = "";
  dialog.returnValue = "cancel"; // what Escape leaves
  dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    const closed = () => {
      const used = dialog.returnValue === "use";
      if (used) useKey(field.value.trim());
      resolve(used);
    };
    dialog.addEventListener("close", closed, { once: true });
  });
}

async function setup() {
  for (let first = true; ; first = false) {
    try {
      return await get("dashboard/setup");
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 401) throw error;
      keyButton.hidden = false;
      if (!(await askForKey(!first || hasKey()))) throw error;
    }
  }
}

function fault(error) {
  const again = el("button", { class: "button", type: "button", on: { click: start } }, "Try again");
  const said = `${error.message} `;
  put(view, el("p", { class: "notice" }, said, el("code", {}, error.code ?? error.name)), el("p", { class: "inside" }, again));
}

let made = {}; // views by name, each made when it is first looked at
let current = null;

/** The page with its views, each behind its own address. */
function frame(service, examples) {
  const names = ["playground", ...service.views];
  const pages = Object.fromEntries(names.map((name) => [name, el("div", { hidden: true })]));
  made = {};
  current = null;
  put(view, Object.values(pages));
  const links = names.map((name) => el("a", { href: address(name), on: { click: (event) => follow(event, name) } }, VIEWS[name]));
  if (names.length > 1) put(document.getElementById("views"), links);

  function address(name) {
    const kept = new URLSearchParams(Object.entries(filters()).filter(([one]) => ["range", "key", "served"].includes(one)));
    if (name !== "playground") kept.set("view", name);
    return `dashboard${kept.size ? `?${kept}` : ""}`;
  }

  function follow(event, name) {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    history.pushState(null, "", address(name));
    show();
  }

  function show() {
    const wanted = filters().view ?? "playground";
    const name = names.includes(wanted) ? wanted : "playground";
    if (current !== name) made[current]?.stop?.();
    current = name;
    for (const [one, page] of Object.entries(pages)) page.hidden = one !== name;
    links.forEach((link, at) => (names[at] === name ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current")));
    document.title = name === "playground" ? "m3-router" : `${VIEWS[name]} · m3-router`;
    made[name] ??= name === "playground" ? playground(pages[name], service, examples) : MAKERS[name](pages[name], service);
    made[name].start?.();
  }
  window.onpopstate = show;
  show();
}

async function start() {
  try {
    const [service, { examples }] = await Promise.all([setup(), get("dashboard/examples")]);
    frame(service, examples);
  } catch (error) {
    fault(error);
  }
}

// Enter in the field uses the key, as the first button of a form would cancel.
document.getElementById("key-field").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  dialog.close("use");
});
themeButton.addEventListener("click", nextTheme);
keyButton.addEventListener("click", async () => {
  if (await askForKey(false)) start();
});
showTheme();
look();
setInterval(look, LOOK_EVERY_MS);
document.addEventListener("visibilitychange", look);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => made[current]?.redraw?.());
start();
