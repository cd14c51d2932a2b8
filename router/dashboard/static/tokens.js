// What each scale can see: the picture as the model's square, and its cells averaged.
//
// The model averages features, not colours, and features hold more than colour. What both share is
// what is drawn: which part of the picture becomes one token, and that detail inside it blends.

export const VIEW = 336; // pixels per side that the vision tower sees
const MEAN = "rgb(122, 116, 104)"; // LLaVA pads with the mean colour of CLIP's training pictures
const MOST = 2048; // of a longer side that is kept for drawing

/** A picture as it is drawn: `square`, padded as for the model, or stretched where it is tiled. */
export function view(bitmap, tiled) {
  const side = Math.min(Math.max(bitmap.width, bitmap.height), MOST);
  const square = canvas(side);
  const context = square.getContext("2d");
  context.fillStyle = MEAN;
  context.fillRect(0, 0, side, side);
  const share = side / Math.max(bitmap.width, bitmap.height);
  const width = tiled ? side : bitmap.width * share;
  const height = tiled ? side : bitmap.height * share;
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (side - width) / 2, (side - height) / 2, width, height);
  const seen = canvas(VIEW);
  const small = seen.getContext("2d", { willReadFrequently: true });
  small.imageSmoothingQuality = "high";
  small.drawImage(square, 0, 0, VIEW, VIEW);
  return { square, pixels: small.getImageData(0, 0, VIEW, VIEW) };
}

/** A canvas of one pixel per cell: the mean colour of each. */
export function averaged(pixels, cells) {
  const sums = new Float64Array(cells * cells * 3);
  for (let y = 0; y < VIEW; y++) {
    const row = Math.floor((y * cells) / VIEW) * cells;
    for (let x = 0; x < VIEW; x++) {
      const from = (y * VIEW + x) * 4;
      const to = (row + Math.floor((x * cells) / VIEW)) * 3;
      sums[to] += pixels.data[from];
      sums[to + 1] += pixels.data[from + 1];
      sums[to + 2] += pixels.data[from + 2];
    }
  }
  const each = (VIEW / cells) ** 2;
  const means = new ImageData(cells, cells);
  for (let cell = 0; cell < cells * cells; cell++) {
    for (let channel = 0; channel < 3; channel++) {
      means.data[cell * 4 + channel] = sums[cell * 3 + channel] / each;
    }
    means.data[cell * 4 + 3] = 255;
  }
  const drawn = canvas(cells);
  drawn.getContext("2d").putImageData(means, 0, 0);
  return drawn;
}

/** Draws the cells of a scale over a whole canvas, from `from` (0 to 1 of its width) to the right. */
export function drawTokens(target, pixels, cells, from = 0) {
  const context = target.getContext("2d");
  const side = target.width;
  context.save();
  context.beginPath();
  context.rect(from * side, 0, side, side);
  context.clip();
  context.imageSmoothingEnabled = false;
  context.drawImage(averaged(pixels, cells), 0, 0, side, side);
  context.strokeStyle = brightness(pixels) > 128 ? "rgba(0, 0, 0, .2)" : "rgba(255, 255, 255, .22)";
  context.lineWidth = Math.max(1, side / 700);
  context.beginPath();
  for (let line = 1; line < cells; line++) {
    const at = Math.round((line * side) / cells);
    context.moveTo(at, 0);
    context.lineTo(at, side);
    context.moveTo(0, at);
    context.lineTo(side, at);
  }
  context.stroke();
  context.restore();
}

/** Draws the picture itself over a whole canvas. */
export function drawPicture(target, square) {
  const context = target.getContext("2d");
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(square, 0, 0, target.width, target.height);
}

/** Gives a canvas the device's pixels for the size it has on the page. Whether it has any. */
export function sharpen(target) {
  const side = Math.round(target.clientWidth * window.devicePixelRatio);
  if (side && target.width !== side) target.width = target.height = side;
  return side > 0;
}

function brightness(pixels) {
  let sum = 0;
  for (let at = 0; at < pixels.data.length; at += 64) {
    sum += 0.3 * pixels.data[at] + 0.6 * pixels.data[at + 1] + 0.1 * pixels.data[at + 2];
  }
  return sum / (pixels.data.length / 64);
}

function canvas(side) {
  const made = document.createElement("canvas");
  made.width = made.height = side;
  return made;
}
