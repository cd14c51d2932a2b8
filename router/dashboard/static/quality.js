// Quality: what the chosen scales cost in answers, whether predictions come true, and where not.

import { chart } from "./chart.js";
import { el, put, svg } from "./dom.js";
import { bound, count, marksOf, percent, plural, rank, version } from "./format.js";
import { looking } from "./looking.js";
import { head, panel, tile } from "./panels.js";

const SIDE = 260;
const EDGE = { left: 42, right: 12, top: 10, bottom: 38 };
const TONES = ["ink", "phase-encode", "phase-fetch", "phase-queue"]; // of predictors, the latest first

const interval = (low, high) => (low === null ? "" : `${percent(low, 1)} to ${percent(high, 1)}`);

/** Predicted against observed, with the line where both are equal. */
function reliability(bins) {
  const wide = SIDE - EDGE.left - EDGE.right;
  const tall = SIDE - EDGE.top - EDGE.bottom;
  const x = (p) => EDGE.left + p * wide;
  const y = (p) => EDGE.top + (1 - p) * tall;
  const text = (at, down, said, anchor) => svg("text", { x: at, y: down, "text-anchor": anchor }, said);
  const steps = [0, 0.25, 0.5, 0.75, 1];
  const points = bins.map((one) => `${x(one.predicted).toFixed(1)} ${y(one.observed).toFixed(1)}`);
  const told = bins.map((one) => `${percent(one.predicted)} predicted, ${percent(one.observed)} agreed`).join("; ");
  return svg("svg", { viewBox: `0 0 ${SIDE} ${SIDE}`, class: "frontier reliability", role: "img", "aria-label": `Reliability: ${told}` },
    steps.map((p) => [
      svg("line", { x1: x(0), x2: x(1), y1: y(p), y2: y(p), class: "rule" }),
      text(x(0) - 8, y(p) + 4, percent(p), "end"),
      text(x(p), y(0) + 17, percent(p), p === 1 ? "end" : "middle"),
    ]).flat(),
    svg("path", { d: `M${x(0)} ${y(0)}L${x(1)} ${y(1)}`, class: "hull" }),
    svg("path", { d: `M${points.join("L")}`, class: "curve" }),
    bins.map((one) => svg("circle", { cx: x(one.predicted), cy: y(one.observed), r: 4, class: "now" })),
    text((x(0) + x(1)) / 2, SIDE - 4, "predicted", "middle"));
}

function matrixRow(scale, row, most, scales, place) {
  return el("tr", { "data-rank": rank(scale, scales) },
    el("th", { scope: "row" }, String(scale)),
    row.map((labels, chosen) => {
      const tone = chosen === place ? "good" : chosen > place ? "warn" : "bad";
      const share = labels ? (0.08 + 0.5 * Math.sqrt(labels / most)).toFixed(3) : 0;
      return el("td", { vars: { k: share, tone: `var(--${tone})` } }, labels ? count(labels) : "·");
    }));
}

function predictorRow(row, inForce) {
  const { regret: known } = row;
  const day = (second) => new Date(second * 1000).toLocaleString([], { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  const broken = known && known.low > known.bound;
  return el("tr", {},
    el("th", { scope: "row" }, el("code", { title: row.predictor }, version(row.predictor)), row.predictor !== null && row.predictor === inForce ? el("span", { class: "chip" }, "serves") : null),
    el("td", {}, day(row.first)), el("td", {}, count(row.answers)),
    el("td", {}, known ? count(known.labels) : "0"),
    el("td", {}, known ? percent(known.regret, 1) : "–"),
    el("td", {}, known ? interval(known.low, known.high) : "–"),
    el("td", {}, known ? `≤ ${bound(known.bound)}` : "–"),
    el("td", {}, known ? el("span", { class: broken ? "bad" : "good" }, broken ? "exceeded" : known.high <= known.bound ? "kept" : "not exceeded") : ""));
}

const KINDS = { picture: "Pictures", question: "Questions", score: "Predicted success" };
const LITTLE = 0.1; // population stability that is nothing to speak of, by the usual reading

function driftRow({ kind, name, psi }, limit) {
  const [tone, said] = psi >= limit ? ["bad", "moved"] : psi >= LITTLE ? ["", "a little"] : ["good", "the same"];
  return el("tr", {},
    el("th", { scope: "row" }, KINDS[kind] ?? kind), el("td", {}, el("code", {}, name)),
    el("td", {}, psi.toFixed(2)), el("td", {}, el("span", { class: tone }, said)));
}

function drifted({ images, fewest_images: fewest, limit, shifts }) {
  if (images < fewest) return `${plural(images, "picture")} of this predictor so far; below ${fewest} the largest of some two hundred numbers is large by chance alone, so nothing is said yet.`;
  if (!shifts.length) return "The predictor in force does not know what it was certified on (an older artefact): retrain to compare.";
  return `How far the newest ${count(images)} pictures and their questions have moved from those that the predictor's prices were certified on: of each kind the number that moved most, by population stability index (m3_drift_psi). From ${limit} on (router.drift.warn_at) the promise is about other traffic: look at the regret above, and retrain. Decisions stay as they are. Of the ingress replica that answered this page, whatever the filters.`;
}

const TARGETS = {
  correctness: "The promise of the predictor in force is about right answers; labels know only whether an answer is the finest scale's. So regret is estimated too high here, never too low: who gets another answer has not always lost a right one.",
  agreement: "The promise of the predictor in force is about the same: answers that are those of the finest scale.",
};

function nothing(data) {
  if (data.uniform_share === 0) return "No labels: router.shadow.uniform_share is 0, so no request is drawn. Set it, for example to 0.02.";
  const share = data.uniform_share === null ? "A share" : percent(data.uniform_share, 1);
  return `No labels in this time. ${share} of the answered requests are drawn (router.shadow.uniform_share), and replicas label them while they have nobody to answer: send requests, look further back, or raise the share.`;
}

export function quality(root, service) {
  const { scales } = service;
  const tiles = {
    regret: tile("regret"), bound: tile("promised"), labels: tile("labels"),
    error: tile("calibration error"), over: tile("more than needed"), under: tile("less than needed"),
  };
  const none = el("p", { class: "panel nothing hint" });
  const overTime = chart({ format: (v) => percent(v, 1), label: "Regret over time with its 95% interval, beside the promised bound" });
  const about = el("p", { class: "fine inside" });
  const diagram = el("div", { class: "drawing" });
  const calibrated = el("p", { class: "fine inside" });
  const byScale = el("tbody");
  const matrixHead = el("tr");
  const matrix = el("tbody");
  const allocated = el("p", { class: "fine inside" });
  const predictors = el("tbody");
  const labelled = el("div", { class: "grid" },
    panel("Regret and its bound", "w7", el("div", { class: "inside" }, overTime.node), about),
    panel("Chosen against needed", "w5",
      el("table", { class: "ladder matrix" }, el("caption", { class: "unseen" }, "Labels by the smallest scale that is enough and the chosen one"), el("thead", {}, matrixHead), matrix), allocated),
    panel("Reliability", "w5", el("div", { class: "inside" }, diagram), calibrated),
    panel("Predicted and agreed, by scale", "w7",
      el("table", { class: "ladder stages by-scale" }, el("caption", { class: "unseen" }, "Mean predicted success and share that agreed, by scale"), head("scale", "predicted", "agreed", "95% interval", "off by"), byScale),
      el("p", { class: "fine inside" }, "Of all labels in this time, whichever scale was chosen. Intervals count every picture once, however often it is asked about. The finest scale always agrees with itself and is left out.")));
  const versions = panel("Predictors", "w12",
    el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Predictors that decided in this time" },
      el("table", { class: "ladder versions" }, el("caption", { class: "unseen" }, "Predictors that decided in this time, and their regret"),
        head("version", "first answer", "answers", "labels", "regret", "95% interval", "promised", "bound"), predictors)),
    el("p", { class: "fine inside" }, "Answers in this time; regret of all labels of a version, whenever they came, as in m3_regret. “Exceeded” is said only with 95% confidence, however often one looks."));

  const drift = el("tbody");
  const driftTable = el("table", { class: "ladder stages drift" }, el("caption", { class: "unseen" }, "What moved most, by kind, and how far"),
    head("what", "moved most", "index", "reading"), drift);
  const driftAbout = el("p", { class: "fine inside" });
  const moved = panel("Drift", "w12", driftTable, driftAbout);

  function drawDrift(now) {
    moved.hidden = !now;
    if (!now) return;
    driftTable.hidden = now.shifts.length === 0;
    put(drift, now.shifts.map((row) => driftRow(row, now.limit)));
    put(driftAbout, drifted(now));
  }

  function drawRegret(data) {
    const { predictors: lines, at } = data.over_time;
    const order = data.predictors.map((row) => row.predictor ?? "none").filter((name) => lines[name]);
    const drawn = order.flatMap((name, index) => {
      const line = lines[name];
      const tone = TONES[index % TONES.length];
      const first = index * 4;
      return [
        { name: `regret, ${version(name)}`, tone, values: line.regret },
        { name: "low", tone, values: line.low, edge: first },
        { name: "high", tone, values: line.high, edge: first },
        { name: `promised, ${version(name)}`, tone: "ink-3", values: line.bound, dashed: true },
      ];
    });
    const most = Math.max(0.05, ...Object.values(lines).flatMap((line) => [...line.bound, ...line.regret]).filter((v) => v !== null));
    overTime.draw(at, drawn, Math.min(1, most * 3), marksOf(data.changes));
  }

  function draw(data) {
    const [now] = data.predictors.filter((row) => row.regret).sort((one, other) => other.last - one.last);
    const known = now?.regret ?? null;
    const { calibration, allocation } = data;
    tiles.regret.set(known ? percent(known.regret, 1) : "–", known ? `95%: ${interval(known.low, known.high)}` : "no label yet");
    tiles.bound.set(known ? `≤ ${bound(known.bound)}` : `≤ ${bound(data.max_regret)}`, known ? "mean of the bounds of those choices" : "the service's own bound");
    tiles.labels.set(count(data.labels), `of ${plural(data.pictures, "picture")}, in this time`);
    tiles.error.set(calibration ? `${(100 * calibration.error).toFixed(1)} pts` : "–", calibration ? "mean distance from the line" : "no forecast labelled");
    tiles.over.set(allocation ? percent(allocation.over) : "–", allocation ? `${percent(allocation.exact)} exactly enough` : "");
    tiles.under.set(allocation ? percent(allocation.under, 1) : "–", allocation ? `of ${plural(allocation.labels, "label")}` : "");

    put(predictors, data.predictors.map((row) => predictorRow(row, data.predictor)));
    versions.hidden = data.predictors.length === 0;
    drawDrift(data.drift);
    none.hidden = data.labels > 0;
    labelled.hidden = data.labels === 0;
    put(none, nothing(data));
    if (!data.labels) return;
    drawRegret(data);
    put(about, `Share of requests whose answer the finest scale would have given and the chosen one did not, with the interval that holds at all times at once. Each point is of all labels of a predictor so far; only uniformly drawn requests count, of every API key, and only those that a replica with time to spare could label (m3_shadow_draws_total says at which loads it could not). ${TARGETS[data.target] ?? ""}`);

    put(matrixHead, el("th", { scope: "col" }, "needed"), (allocation?.scales ?? scales).map((scale) => el("th", { scope: "col" }, `given ${scale}`)));
    const most = Math.max(...(allocation?.matrix ?? []).flat(), 1);
    put(matrix, (allocation?.matrix ?? []).map((row, place) => matrixRow(allocation.scales[place], row, most, allocation.scales, place)));
    put(allocated, allocation
      ? `${plural(allocation.labels, "label")} whose scale the predictor alone settled; forced and limited choices are not counted. Needed is the smallest scale whose answer is the finest's. On the diagonal: exactly enough. Right of it: more than was needed. Left: another answer than the finest's. ${percent(allocation.lost, 1)} got another answer in all, for a finer scale than needed may differ again.`
      : "No label in this time was of a choice that the predictor alone had settled.");

    put(diagram, calibration ? reliability(calibration.bins) : el("p", { class: "nothing" }, "No label in this time has predictions beside it."));
    put(calibrated, calibration
      ? `How often an answer agreed with the finest scale's (upwards) where so much success was predicted, in ${plural(calibration.bins.length, "bin")} of about ${count(calibration.bins[0].count)} forecasts: ${plural(calibration.labels, "label")}, each at every scale but the finest. On the dashed line predictions come true. ${data.target === "correctness" ? "The predictor in force foretells right answers, which is less than agreeing, so a curve above the line is to be expected." : ""}`
      : "");
    put(byScale, (calibration?.scales ?? []).map((row) => el("tr", { "data-rank": rank(row.scale, scales) },
      el("th", { scope: "row" }, String(row.scale)), el("td", {}, percent(row.predicted, 1)), el("td", {}, percent(row.agreed, 1)),
      el("td", {}, interval(row.low, row.high)), el("td", {}, `${row.agreed < row.predicted ? "−" : "+"}${(100 * Math.abs(row.agreed - row.predicted)).toFixed(1)} pts`))));
  }

  return looking(root, {
    view: "quality",
    title: "Quality",
    keyless: true,
    lead: "What the chosen scales cost in answers, whether predictions come true, and where the predictor gives too much or too little.",
    extra: [{ name: "predictor", label: "Predictor", all: "all predictors", values: (data) => data.predictors.map((row) => row.predictor).filter(Boolean) }],
    parts: [el("dl", { class: "tiles" }, Object.values(tiles).map((one) => one.node)), none, labelled, el("div", { class: "grid below" }, versions, moved)],
    draw,
  });
}
