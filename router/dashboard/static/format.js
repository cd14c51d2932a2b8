// Numbers as people read them.

export function milliseconds(ms) {
  if (ms >= 10_000) return `${(ms / 1000).toFixed(1)} s`;
  if (ms >= 1000) return `${(ms / 1000).toFixed(2)} s`;
  return `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
}

export function percent(share, digits = 0) {
  return `${(share * 100).toFixed(digits)}%`;
}

/** A bound such as 0.075 without digits that it does not have. */
export function bound(share) {
  return `${Number((share * 100).toPrecision(4))}%`;
}

/** The beginning of a version, enough to tell it from others. */
export function version(name) {
  return name === null ? "none" : name.slice(0, 8);
}

/** Changes of the predictor, as marks of a chart. */
export function marksOf(changes) {
  return changes.map((one) => ({ at: one.at, word: `predictor ${version(one.predictor)}` }));
}

/** A figure with three digits, or whole from a hundred on. */
export function figure(value) {
  return value >= 100 ? count(Math.round(value)) : value.toPrecision(3).replace(/\.?0+$/, "");
}

export function count(number) {
  return number.toLocaleString("en-US");
}

export function plural(number, word) {
  return `${count(number)} ${word}${number === 1 ? "" : "s"}`;
}

/** 1 to 5: which of the scale colours a scale has, by its place on its ladder. */
export function rank(scale, scales) {
  const last = Math.max(scales.length - 1, 1);
  return 1 + Math.round((scales.indexOf(scale) / last) * 4);
}
