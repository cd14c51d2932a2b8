// Cost and latency: what adaptive scale saves, and what everything takes.

import { chart } from "./chart.js";
import { el, put } from "./dom.js";
import { count, figure, marksOf, milliseconds, percent, plural, rank } from "./format.js";
import { looking } from "./looking.js";
import { head, panel, tile } from "./panels.js";

const STAGES = {
  routing: "all of it", wait: "wait for a thread", parse: "parse", images: "check images",
  features: "features", predict: "predict", decide: "decide",
};

const short = (ms) => (ms === null ? "–" : milliseconds(ms));

function money(value, currency) {
  if (value === null) return "–";
  return value.toLocaleString("en-US", { style: "currency", currency, maximumSignificantDigits: 3 });
}

const share = (part, { prefix, memory, redis, miss }) => part / Math.max(prefix + memory + redis + miss, 1);

function change(now, other) {
  if (!other) return "";
  const share = now / other - 1;
  if (Math.abs(share) < 0.005) return "as much";
  return `${percent(Math.abs(share))} ${share < 0 ? "less" : "more"}`;
}

function signed(now, other) {
  if (!other) return "";
  const share = now / other - 1;
  return `${share < 0 ? "−" : "+"}${percent(Math.abs(share))}`;
}

function policyRow(row, router, scales, currency, most) {
  const scale = row.place === null ? null : scales[row.place - 1];
  const name = scale === null ? "router" : `always ${scale}`;
  const tag = row.as_good ? "as good" : row.finest ? "finest" : null;
  return el("tr", { "data-rank": scale === null ? null : rank(scale, scales), class: scale === null ? "chosen" : null },
    el("th", { scope: "row" }, name, tag ? el("span", { class: "chip" }, tag) : null),
    el("td", {}, el("div", { class: "meter" },
      el("i", { vars: { p: Math.sqrt(row.tokens_per_request / most).toFixed(4) }, "aria-hidden": "true" }),
      el("span", {}, figure(row.tokens_per_request)))),
    el("td", {}, short(row.replica_ms)),
    el("td", {}, scale === null || row.replica_ms === null ? "" : signed(router.replica_ms, row.replica_ms)),
    el("td", {}, money(row.money, currency)),
    el("td", {}, row.p_success === null ? "–" : percent(row.p_success, 1)));
}

export function cost(root, service) {
  const { scales } = service;
  const tiles = {
    requests: tile("requests"), tokens: tile("visual tokens per answer"), replica: tile("replica time per answer"),
    money: tile("cost of 1,000 answers"), ttft: tile("first token, p95"), bad: tile("not answered"),
  };
  const byScale = chart({ stack: true, format: figure, label: "Answers by chosen scale over time" });
  const first = chart({ format: short, label: "Time to the first token over time" });
  const cache = chart({ area: true, format: (v) => percent(v), label: "Share of pictures whose features were cached, over time" });
  const load = chart({ area: true, format: figure, label: "Answered, refused and failed requests over time" });
  const pressure = chart({ format: (v) => v.toFixed(2), label: "Pressure over time" });
  const tokens = chart({ area: true, format: figure, label: "Visual tokens per answer over time" });
  const policies = el("tbody");
  const explained = el("p", { class: "fine inside" });
  const cached = el("p", { class: "fine inside" });
  const latencies = el("tbody");
  const stages = el("tbody");
  const said = el("p", { class: "fine inside" });

  const view = looking(root, {
    view: "cost",
    title: "Cost and latency",
    lead: "What answering at the chosen scale takes, beside what any fixed scale would have taken of the same requests.",
    parts: [
      el("dl", { class: "tiles" }, Object.values(tiles).map((one) => one.node)),
      el("div", { class: "grid" },
        panel("Answers by chosen scale", "w7", el("div", { class: "inside" }, byScale.node)),
        panel("Time to the first token", "w5", el("div", { class: "inside" }, first.node)),
        panel("The router beside fixed scales", "w7", el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "The router beside fixed scales" },
          el("table", { class: "ladder policies" }, el("caption", { class: "unseen" }, "What was spent, and what fixed scales would have"),
            head("policy", "visual tokens per answer", "replica", "router", "per 1,000", "success"), policies)), explained),
        panel("Latency by scale", "w5", el("table", { class: "ladder latencies" },
          el("caption", { class: "unseen" }, "Time to the first token and to the end, by scale"),
          head("scale", "answers", "first p50", "p95", "p99", "whole p95"), latencies), said),
        panel("Visual tokens per answer", "w4", el("div", { class: "inside" }, tokens.node)),
        panel("Answered, refused, failed", "w4", el("div", { class: "inside" }, load.node)),
        panel("Pressure", "w4", el("div", { class: "inside" }, pressure.node)),
        panel("Cached features", "w5", el("div", { class: "inside" }, cache.node), cached),
        panel("The router's own work", "w7", el("table", { class: "ladder stages" },
          el("caption", { class: "unseen" }, "Milliseconds of each stage"),
          head("stage", "mean", "p50", "p95", "p99"), stages),
        el("p", { class: "fine inside" }, "From a request's last byte to its hand-over to a replica, all pictures of a request together. Fetching remote pictures is not counted."))),
    ],
    draw,
  });

  function draw(data) {
    const { totals, over_time: time, policies: rows } = data;
    const router = rows.find((row) => row.policy === "router");
    const finest = rows.find((row) => row.finest);
    const span = data.until - data.since;
    const rate = totals.requests / span;
    tiles.requests.set(count(totals.requests), `${rate >= 10 ? rate.toFixed(0) : rate.toPrecision(2)} a second on average`);
    tiles.tokens.set(router ? figure(router.tokens_per_request) : "–", router && finest ? `${change(router.tokens_per_request, finest.tokens_per_request)} than ${figure(finest.tokens_per_request)} at the finest` : "");
    tiles.replica.set(router ? milliseconds(router.replica_ms) : "–", router && finest ? `est. ${change(router.replica_ms, finest.replica_ms)} than the finest` : "");
    tiles.money.set(router ? money(router.money, data.currency) : "–", data.price_per_replica_hour === null ? "set dashboard.price_per_replica_hour" : `at ${money(data.price_per_replica_hour, data.currency)} a replica hour`);
    tiles.ttft.set(short(data.ttft.p95), `p50 ${short(data.ttft.p50)} · p99 ${short(data.ttft.p99)}`);
    const lost = totals.requests - totals.answered;
    tiles.bad.set(totals.requests ? percent(lost / totals.requests, lost ? 1 : 0) : "–", `${count(totals.refused)} refused, ${count(lost - totals.refused)} failed`);

    const marks = marksOf(data.changes);
    const known = Object.keys(time.scales).map(Number);
    byScale.draw(time.at, known.map((scale) => ({ name: `${scale}`, tone: `scale-${rank(scale, scales)}`, values: time.scales[scale] })), undefined, marks);
    first.draw(time.at, [
      { name: "p50", tone: "scale-2", values: time.ttft.p50 },
      { name: "p95", tone: "scale-4", values: time.ttft.p95 },
      { name: "p99", tone: "scale-5", values: time.ttft.p99 },
    ]);
    tokens.draw(time.at, [
      { name: "chosen", tone: "scale-3", values: time.tokens },
      { name: "at the finest", tone: "ink-3", values: time.finest },
    ], undefined, marks);
    load.draw(time.at, [
      { name: "answered", tone: "good", values: time.answered },
      { name: "refused", tone: "warn", values: time.refused },
      { name: "failed", tone: "bad", values: time.failed },
    ]);
    pressure.draw(time.at, [{ name: "highest", tone: "warn", values: time.pressure }], (_, __, most) => Math.max(most * 1.08, 1));
    cache.draw(time.at, [{ name: "not encoded again", tone: "scale-1", values: time.hit_share }], 1);

    put(cached, `Of the pictures of answers: ${percent(share(totals.prefix, totals))} needed none, as the last question's image tokens were still in the model's memory; ${percent(share(totals.memory, totals))} had them in the replica's memory, ${percent(share(totals.redis, totals))} in Redis, ${percent(share(totals.miss, totals))} went through the vision tower.`);

    const most = Math.max(...rows.map((row) => row.tokens_per_request), 1);
    put(policies, rows.map((row) => policyRow(row, router, scales, data.currency, most)));
    const exact = `${count(totals.image_tokens)} visual tokens in ${plural(totals.answered, "answer")}, ${count(totals.finest_tokens)} had all been at the finest scale`;
    put(explained, `${exact}: sums over the records, exact. Replica time is what replicas measured for vision tower, prefill and decode; requests in one batch share it, so it adds up to more than the clock. For fixed scales it is estimated: the difference in tokens times the prefill time of one, as measured when the model started. Queues, the network and idle replicas are not counted. “Router” is what the router took beside it. Success is predicted; “as good” is the cheapest fixed scale with no less of it. Bars are drawn by the square root.`);
    put(latencies, data.latency.map((row) => el("tr", { "data-rank": rank(row.scale, scales) },
      el("th", { scope: "row" }, String(row.scale)), el("td", {}, count(row.requests)),
      el("td", {}, short(row.ttft.p50)), el("td", {}, short(row.ttft.p95)), el("td", {}, short(row.ttft.p99)), el("td", {}, short(row.total.p95)))));
    put(said, "As the router measured them, from a request's arrival. Quantiles are within 4.5%. With several pictures, the finest scale counts.");
    put(stages, data.stages.map((row) => el("tr", {},
      el("th", { scope: "row" }, STAGES[row.stage] ?? row.stage),
      ["mean", "p50", "p95", "p99"].map((name) => el("td", {}, short(row[name]))))));
  }
  return view;
}
