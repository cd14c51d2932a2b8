// Lines and stacked bars over time, by uPlot, in the colours of the visual language.

import uPlot from "./vendor/uplot/uPlot.esm.js";
import { el, put } from "./dom.js";

const HEIGHT = 210;
const FONT = '11px "Inter", system-ui, sans-serif';

/** What a custom property is just now, light or dark. */
export function colour(name) {
  const probe = el("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function faint(colour_, share) {
  return colour_.replace(/^rgb\((.*)\)$/, `rgba($1, ${share})`);
}

function axes(format) {
  const common = { stroke: colour("ink-3"), font: FONT, ticks: { show: false } };
  const grid = { stroke: colour("line"), width: 1 };
  return [
    { ...common, grid: { show: false }, size: 28, gap: 6, space: 70, values: times },
    { ...common, grid, size: (_, values) => 14 + 6.4 * Math.max(2, ...(values ?? [""]).map((v) => v.length)), gap: 6, space: 34, values: (_, ticks) => ticks.map(format) },
  ];
}

function times(_, seconds) {
  let day = null;
  return seconds.map((second) => {
    const at = new Date(second * 1000);
    const today = at.toDateString();
    const clock = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
    const changed = day !== null && today !== day;
    day = today;
    const midnight = at.getHours() === 0 && at.getMinutes() === 0;
    return changed || midnight ? at.toLocaleDateString([], { day: "numeric", month: "short" }) : clock;
  });
}

function stacked(lines) {
  const sums = [];
  let below = lines[0].values.map(() => 0);
  for (const { values } of lines) {
    below = values.map((value, at) => below[at] + (value ?? 0));
    sums.push(below);
  }
  return sums;
}

/** Between the two edges of each line that has them. */
function bands(lines) {
  return lines.flatMap((line, index) => {
    const edges = lines.map((one, at) => (one.edge === index ? at + 1 : 0)).filter(Boolean);
    return edges.length === 2 ? [{ series: edges.reverse(), fill: faint(colour(line.tone), 0.12) }] : [];
  });
}

/** Vertical lines with a word beside them. */
function drawMarks(u, marks) {
  const { ctx, bbox } = u;
  const sharp = window.devicePixelRatio;
  ctx.save();
  ctx.strokeStyle = colour("ink-3");
  ctx.fillStyle = colour("ink-2");
  ctx.font = FONT.replace("11px", `${11 * sharp}px`);
  ctx.setLineDash([2 * sharp, 3 * sharp]);
  ctx.lineWidth = sharp;
  for (const { at, word } of marks) {
    const x = Math.round(u.valToPos(at, "x", true));
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    const right = x + 6 * sharp + ctx.measureText(word).width > bbox.left + bbox.width;
    ctx.textAlign = right ? "right" : "left";
    ctx.fillText(word, x + (right ? -5 : 5) * sharp, bbox.top + 10 * sharp);
  }
  ctx.restore();
}

/** Points are shown where there are too few for a line. */
function few(values, tone) {
  const there = values.filter((value) => value !== null).length;
  return { show: there < 20, size: 5, fill: tone, stroke: tone };
}

/**
 * A chart that can be drawn again. `lines`: `{name, tone, values}`, `tone` a custom property.
 * Options: `stack` (bars on each other), `format` (of a value), `label` (what it shows, in words).
 * Lines may be `dashed`, or `edge` of the band of the line of that index, which `draw` fills.
 * `marks` are moments with a word: `{at, word}`.
 */
export function chart(options) {
  const place = el("div", { class: "chart" });
  const key = el("ul", { class: "legend" });
  const figure = el("figure", { "aria-label": options.label }, place, key);
  let drawn = null;

  new ResizeObserver(() => {
    if (drawn && place.clientWidth) drawn.setSize({ width: place.clientWidth, height: HEIGHT });
  }).observe(place);

  function legend(lines, index) {
    put(key, lines.filter((line) => line.edge === undefined).map((line) => {
      const value = index === null || index === undefined ? null : line.values[index];
      const shown = value === null || value === undefined ? line.name : `${line.name} ${options.format(value)}`;
      return el("li", { vars: { tone: `var(--${line.tone})` } }, el("i", { "aria-hidden": "true" }), shown);
    }));
  }

  return {
    node: figure,
    draw(at, lines, highest, marks = []) {
      drawn?.destroy();
      drawn = null;
      legend(lines, null);
      if (!lines.length || !at.length) return put(place, el("p", { class: "nothing" }, "Nothing in this time."));
      put(place);
      const heights = options.stack ? stacked(lines) : lines.map((line) => line.values);
      const order = options.stack ? lines.map((_, index) => index).reverse() : lines.map((_, index) => index);
      const series = order.map((index) => {
        const tone = colour(lines[index].tone);
        if (options.stack) return { stroke: tone, fill: tone, width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.82, 60], gap: 0 }) };
        if (lines[index].edge !== undefined) return { stroke: faint(tone, 0.35), width: 1, points: { show: false }, spanGaps: true, paths: uPlot.paths.linear() };
        return { stroke: tone, dash: lines[index].dashed ? [5, 4] : undefined, fill: options.area ? faint(tone, 0.12) : undefined, width: 1.75, points: few(lines[index].values, tone), spanGaps: true, paths: uPlot.paths.linear() };
      });
      const top = highest ?? ((_, __, most) => Math.max(most * 1.08, 1e-9));
      drawn = new uPlot({
        width: place.clientWidth || 300, height: HEIGHT, padding: [10, 20, 0, 0],
        legend: { show: false }, cursor: { y: false, points: { show: !options.stack, size: 7 }, drag: { x: false, y: false } },
        scales: { y: { range: (u, low, most) => [0, typeof top === "number" ? top : top(u, low, most ?? 1)] } },
        axes: axes(options.format), series: [{}, ...series], bands: bands(lines),
        hooks: { draw: [(u) => drawMarks(u, marks)], setCursor: [(u) => legend(lines, u.cursor.idx)] },
      }, [at, ...order.map((index) => heights[index])], place);
      return undefined;
    },
  };
}
