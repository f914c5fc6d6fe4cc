// How much a picture is like an OCT B-scan, 0 to 1: oct_hf/data/quality.py's gate on what a small picture of it shows.

import { boxed, toGray } from "./pillow.js";
import { rounded } from "./scaled.js";

const SIDE = 128;
const [WHITE, FLAT, PAPER] = [180, 6, 235]; // gray levels, as in oct_hf/data/shrunken.py

/** The gate's probability. `gate` holds its fitted mean, scale, weights and intercept. */
export function likeness(image, gate) {
  const values = features(boxed(toGray(image), SIDE, SIDE).data);
  const scaled = values.map((value, i) => Math.min(4, Math.max(-4, (value - gate.mean[i]) / gate.scale[i])));
  const products = scaled.flatMap((value, i) => scaled.slice(i).map((other) => value * other));
  const sum = [...scaled, ...products].reduce((total, value, i) => total + value * gate.weights[i], gate.intercept);
  return 1 / (1 + Math.exp(-sum));
}

function features(small) {
  const fill = filled(small);
  const filledPixels = total(fill);
  const picture = Float32Array.from(small, (value, i) => (fill[i] ? 0 : value));
  const inside = filledPixels < fill.length - SIDE ? small.filter((_, i) => !fill[i]) : picture;
  const [low, quarter, half, high, top] = percentiles(inside, [0.05, 0.25, 0.5, 0.9, 0.99]);
  const contrast = Math.max(top - quarter, 1);
  const smooth = uniform(picture, 5);
  const smoother = uniform(smooth, 9);
  const fine = [meanStep(picture, 1, 0), meanStep(picture, 0, 1)];
  const coarse = [meanStep(smooth, 6, 0), meanStep(smooth, 0, 6)];
  // Every other column, laid over each other by the middle of their light, as if the retina were flat.
  const columns = Array.from({ length: SIDE / 2 }, (_, x) => Array.from({ length: SIDE }, (_, y) => smooth[y * SIDE + 2 * x]));
  const lights = columns.map((column) => column.map((value) => Math.max(value - quarter, 0) ** 2 + 1e-3));
  const weight = lights.map(total);
  const middle = Float32Array.from(lights, (light, x) => total(light.map((value, y) => value * y)) / weight[x]);
  const spread = lights.map((light, x) =>
    Math.sqrt(Math.max(total(light.map((value, y) => value * y * y)) / weight[x] - middle[x] ** 2, 0)),
  );
  const line = lines(middle, 5);
  const flat = columns.map((column, x) => {
    const shift = rounded(line[x] - SIDE / 2);
    return column.map((_, y) => column[Math.min(SIDE - 1, Math.max(0, y + shift))]);
  });
  const profile = Array.from({ length: SIDE }, (_, y) => mean(flat.map((column) => column[y])));
  const units = flat.map((column) => {
    const centred = centre(column);
    const length = Math.sqrt(total(centred.map((value) => value * value))) + 1e-3;
    return centred.map((value) => value / length);
  });
  const shape = centre(profile);
  const norm = Math.sqrt(total(shape.map((value) => value * value))) + 1e-3;
  const alike = ascending(units.map((column) => dot(shape, column) / norm));
  const far = ascending(units.slice(12).map((column, x) => dot(column, units[x])));
  const [above, below] = [mean(profile.slice(0, SIDE / 4)), mean(profile.slice(-SIDE / 4))];
  const brightest = profile.indexOf(Math.max(...profile));
  const bends = Array.from(line.slice(2), (value, x) => value - 2 * line[x + 1] + line[x]);
  return [
    mean(inside) / 255,
    contrast / 255,
    (half - low) / contrast,
    (high - low) / contrast,
    Math.log(fine[0] + 0.1) - Math.log(fine[1] + 0.1),
    Math.log(coarse[0] + 0.1) - Math.log(coarse[1] + 0.1),
    Math.log((fine[0] + fine[1] + 0.1) / (coarse[0] + coarse[1] + 0.1)),
    mean(Array.from(middle.slice(1), (value, x) => Math.abs(value - middle[x]))),
    mean(bends.map(Math.abs)),
    deviation(line) / SIDE,
    mean(spread) / SIDE,
    deviation(spread) / SIDE,
    alike[alike.length >> 1],
    alike[Math.floor(alike.length / 10)],
    far[far.length >> 1],
    (above - low) / contrast,
    (below - low) / contrast,
    (profile[brightest] - half) / contrast,
    brightest / SIDE,
    deviation(weight) / mean(weight),
    mean(picture.map((value, i) => Math.abs(value - smooth[i]))) / contrast,
    mean(smooth.map((value, i) => Math.abs(value - smoother[i]))) / contrast,
    filledPixels / fill.length,
  ];
}

/** 1 for each pixel that an export filled: white wedges above and below, white margins. */
function filled(small) {
  const fill = new Uint8Array(small.length);
  for (const from of [0, (3 * SIDE) / 4]) wedges(small, fill, from, from + SIDE / 4);
  const least = (along, across) =>
    Array.from({ length: SIDE }, (_, i) => Math.min(...Array.from({ length: SIDE }, (_, j) => small[i * along + j * across])));
  for (const [along, across] of [[SIDE, 1], [1, SIDE]]) {
    const white = least(along, across).map((value) => value >= PAPER);
    const [first, last] = [white.indexOf(false), white.lastIndexOf(false)];
    white.forEach((_, i) => {
      if (first < 0 || i < first || i > last) for (let j = 0; j < SIDE; j++) fill[i * along + j * across] = 1;
    });
  }
  return fill;
}

/** What is bright and even in the rows from `start` on, before `end`, and the bright pixels around it. */
function wedges(small, fill, start, end) {
  const bright = (y, x) => small[y * SIDE + x] >= WHITE;
  const even = (y, x) => Math.abs(small[y * SIDE + x + 1] - small[y * SIDE + x]) <= FLAT;
  const white = (y, x) => {
    if (x === 0) return bright(y, 0) && white(y, 1);
    if (x === SIDE - 1) return bright(y, x) && white(y, x - 1);
    return bright(y, x) && even(y, x - 1) && even(y, x);
  };
  for (let y = start; y < end; y++) {
    for (let x = 0; x < SIDE; x++) {
      if (!white(y, x)) continue;
      for (let v = Math.max(start, y - 2); v < Math.min(end, y + 3); v++) {
        for (let u = Math.max(0, x - 2); u < Math.min(SIDE, x + 3); u++) if (small[v * SIDE + u] >= 40) fill[v * SIDE + u] = 1;
      }
    }
  }
}

/** The gray level that each share of the pixels is at or below. */
function percentiles(values, shares) {
  const counts = new Array(256).fill(0);
  for (const value of values) counts[value] += 1;
  let sum = 0;
  const running = counts.map((count) => (sum += count));
  return shares.map((share) => running.findIndex((count) => count >= sum * share));
}

/** The mean of size x size pixels around each, down the columns first; edges are mirrored. */
function uniform(image, size) {
  return eachLine(transposed(eachLine(transposed(image), size)), size);
}

function eachLine(image, size) {
  const out = new Float32Array(image.length);
  for (let start = 0; start < image.length; start += SIDE) out.set(lines(image.subarray(start, start + SIDE), size), start);
  return out;
}

function transposed(image) {
  return image.map((_, i) => image[(i % SIDE) * SIDE + Math.floor(i / SIDE)]);
}

/** The mean of `size` neighbours along a line; ends are mirrored. */
function lines(line, size) {
  const half = size >> 1;
  const at = (x) => line[x < 0 ? -1 - x : x >= line.length ? 2 * line.length - 1 - x : x];
  let sum = 0;
  for (let x = -half; x <= half; x++) sum += at(x);
  return Float32Array.from(line, (_, x) => {
    if (x) sum += at(x + half) - at(x - half - 1);
    return sum / size;
  });
}

/** The mean size of a step of so many rows down and columns to the right. */
function meanStep(image, rows, columns) {
  let sum = 0;
  for (let y = rows; y < SIDE; y++) {
    for (let x = columns; x < SIDE; x++) sum += Math.abs(image[y * SIDE + x] - image[(y - rows) * SIDE + x - columns]);
  }
  return sum / ((SIDE - rows) * (SIDE - columns));
}

function total(values) {
  let sum = 0;
  for (const value of values) sum += value;
  return sum;
}

function mean(values) {
  return total(values) / values.length;
}

function centre(values) {
  const middle = mean(values);
  return values.map((value) => value - middle);
}

function deviation(values) {
  return Math.sqrt(mean(centre(Array.from(values)).map((value) => value * value)));
}

function dot(a, b) {
  return total(a.map((value, i) => value * b[i]));
}

function ascending(values) {
  return values.sort((a, b) => a - b);
}
