// PNG to pixels, all of its kinds: 1 to 16 bits, palettes, interlaced. Transparency is dropped and the colour below it kept.

import { Refused } from "./refused.js";
import { eightBits } from "./scaled.js";
import { inflated } from "./inflated.js";

const SAMPLES = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 }; // by colour type
const WHOLE = [[0, 0, 1, 1]]; // first column and row, and the steps from there
const ADAM7 = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];

/** {width, height, channels, data, orientation}; `check` refuses by size and frames. */
export async function decodePng(bytes, check) {
  const chunks = chunksOf(bytes);
  const head = chunks.IHDR?.[0];
  if (!head || !chunks.IDAT) throw new Refused("can't be decoded (the PNG is cut off)");
  const [width, height] = [number(head, 0), number(head, 4)];
  const [depth, kind, interlaced] = [head[8], head[9], head[12]];
  check(width, height, chunks.acTL ? number(chunks.acTL[0], 0) : 1);
  const samples = SAMPLES[kind];
  if (!samples || ![1, 2, 4, 8, 16].includes(depth)) throw new Refused("can't be decoded (a PNG of no known kind)");
  const rows = await inflated(chunks.IDAT);
  const values = new (depth === 16 ? Uint16Array : Uint8Array)(width * height * samples);
  let at = 0;
  for (const [left, top, across, down] of interlaced ? ADAM7 : WHOLE) {
    const [columns, lines] = [Math.ceil((width - left) / across), Math.ceil((height - top) / down)];
    if (columns <= 0 || lines <= 0) continue;
    const length = Math.ceil((columns * samples * depth) / 8);
    if (at + lines * (length + 1) > rows.length) throw new Refused("can't be decoded (the PNG is cut off)");
    unfilter(rows, at, lines, length, Math.max(1, (samples * depth) >> 3));
    for (let y = 0; y < lines; y++) {
      const line = rows.subarray(at + 1, at + 1 + length);
      const to = ((top + y * down) * width + left) * samples;
      for (let i = 0; i < columns * samples; i++) {
        values[to + Math.floor(i / samples) * across * samples + (i % samples)] = sample(line, i, depth);
      }
      at += length + 1;
    }
  }
  const orientation = chunks.eXIf ? orientationOf(chunks.eXIf[0]) : 1;
  return { width, height, ...picture(values, kind, depth, chunks.PLTE?.[0]), orientation };
}

function number(bytes, at) {
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(at);
}

/** The contents of all chunks, by their names. */
function chunksOf(bytes) {
  const found = {};
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = number(bytes, at);
    const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (at + 12 + length > bytes.length) throw new Refused("can't be decoded (the PNG is cut off)");
    (found[name] ??= []).push(bytes.subarray(at + 8, at + 8 + length));
    at += 12 + length;
  }
  return found;
}

/** Undoes in place the differences that each line was stored as. */
function unfilter(rows, start, lines, length, back) {
  for (let y = 0, at = start; y < lines; y++, at += length + 1) {
    const kind = rows[at];
    if (kind > 4) throw new Refused("can't be decoded (the PNG is damaged)");
    for (let x = 1; kind && x <= length; x++) {
      const left = x > back ? rows[at + x - back] : 0;
      const above = y ? rows[at + x - length - 1] : 0;
      const corner = y && x > back ? rows[at + x - length - 1 - back] : 0;
      if (kind === 1) rows[at + x] += left;
      else if (kind === 2) rows[at + x] += above;
      else if (kind === 3) rows[at + x] += (left + above) >> 1;
      else rows[at + x] += nearest(left, above, corner);
    }
  }
}

/** Paeth's predictor. */
function nearest(left, above, corner) {
  const toLeft = Math.abs(above - corner);
  const toAbove = Math.abs(left - corner);
  const toCorner = Math.abs(left + above - 2 * corner);
  if (toLeft <= toAbove && toLeft <= toCorner) return left;
  return toAbove <= toCorner ? above : corner;
}

function sample(line, place, depth) {
  if (depth === 8) return line[place];
  if (depth === 16) return (line[2 * place] << 8) | line[2 * place + 1];
  const bit = place * depth;
  return (line[bit >> 3] >> (8 - depth - (bit & 7))) & ((1 << depth) - 1);
}

/** {channels, data} of 8 bits. Of 16-bit colour, and of gray with transparency, the upper 8 count, as pillow has it. */
function picture(values, kind, depth, palette) {
  const samples = SAMPLES[kind];
  if (kind === 0) {
    if (depth === 16) return { channels: 1, data: eightBits(values) };
    return { channels: 1, data: Uint8Array.from(values, (value) => (value * 255) / ((1 << depth) - 1)) };
  }
  const eight = depth === 16 ? Uint8Array.from(values, (value) => value >> 8) : values;
  if (kind === 4) return { channels: 1, data: eight.filter((_, i) => i % 2 === 0) };
  if (kind === 2) return { channels: 3, data: eight };
  const count = values.length / samples;
  const data = new Uint8Array(count * 3);
  for (let i = 0; i < count; i++) {
    for (let c = 0; c < 3; c++) data[3 * i + c] = kind === 3 ? palette[3 * eight[i] + c] : eight[4 * i + c];
  }
  return { channels: 3, data };
}

/** EXIF's orientation, 1 where there is none. */
function orientationOf(exif) {
  const view = new DataView(exif.buffer, exif.byteOffset, exif.length);
  const little = view.getUint16(0) === 0x4949;
  const first = view.getUint32(4, little);
  for (let entry = 0; entry < view.getUint16(first, little); entry++) {
    const at = first + 2 + 12 * entry;
    if (view.getUint16(at, little) === 0x0112) return view.getUint16(at + 8, little);
  }
  return 1;
}
