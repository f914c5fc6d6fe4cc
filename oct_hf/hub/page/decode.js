// A picture file's bytes to the pixels that the package reads of it (oct_hf/images.py), or one line that says why not.
// PNG and TIFF are decoded here, since a browser cuts 16 bits to 8 and forgets the colour below transparency; the others by the browser.

import { decodePng } from "./png.js";
import { decodeTiff } from "./tiff.js";
import { Refused } from "./refused.js";

const MIN_SIDE = 16;
const MAX_PIXELS = 100e6;

/** {width, height, channels, data}; raises Refused. */
export async function decode(bytes) {
  if (!bytes.length) throw new Refused("is empty (0 bytes)");
  let picture;
  try {
    picture = await decoder(bytes)(bytes, check);
  } catch (error) {
    throw error instanceof Refused ? error : new Refused(`can't be decoded (${error.message || error})`);
  }
  return grayWhereGray(turned(picture));
}

/** Refuses a picture by its size, before it is decoded where its head tells that. */
function check(width, height, frames = 1) {
  const size = `has ${width}x${height} pixels`;
  if (width * height > MAX_PIXELS) throw new Refused(`${size}, more than ${MAX_PIXELS / 1e6} megapixels`);
  if (Math.min(width, height) < MIN_SIDE) throw new Refused(`${size}; a B-scan needs at least ${MIN_SIDE}x${MIN_SIDE}`);
  if (frames > 1) throw new Refused(`holds ${frames} frames; save each B-scan as a file of its own`);
}

function decoder(bytes) {
  const head = String.fromCharCode(...bytes.subarray(0, 12));
  if (head.startsWith("\x89PNG")) return decodePng;
  if (head.startsWith("II*\0") || head.startsWith("MM\0*")) return decodeTiff;
  if (head.startsWith("\xff\xd8\xff") || head.startsWith("BM")) return byBrowser;
  if (head.startsWith("GIF8")) return byBrowser;
  if (head.startsWith("RIFF") && head.endsWith("WEBP")) return byBrowser;
  throw new Refused("is no PNG, JPEG, TIFF, BMP, GIF or WebP picture; oct-hf predict reads a device's files");
}

async function byBrowser(bytes, check) {
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image" };
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob([bytes]), options);
  } catch {
    throw new Refused("can't be decoded by this browser (it is damaged, or of a kind that is no picture)");
  }
  const { width, height } = bitmap;
  check(width, height, frames(bytes));
  const rgba = pixelsOf(bitmap);
  const data = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    if (rgba[from + 3] !== 255) throw new Refused("has transparent pixels, which a browser alters; save it as PNG");
    data[to++] = rgba[from];
    data[to++] = rgba[from + 1];
    data[to++] = rgba[from + 2];
  }
  return { width, height, channels: 3, data };
}

function pixelsOf(bitmap) {
  if (altersPixels()) {
    throw new Refused("can't be read exactly: this browser alters pixels that a page reads; save it as PNG or TIFF");
  }
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, canvas.width, canvas.height).data;
}

let altered;

/** Whether this browser adds noise to what is read from a canvas, as some do against fingerprinting. */
function altersPixels() {
  if (altered === undefined) {
    const side = 64;
    const context = new OffscreenCanvas(side, side).getContext("2d", { willReadFrequently: true });
    const given = context.createImageData(side, side);
    for (let i = 0; i < given.data.length; i++) given.data[i] = i % 4 === 3 ? 255 : (i * 7919) % 256;
    context.putImageData(given, 0, 0);
    altered = context.getImageData(0, 0, side, side).data.some((value, i) => value !== given.data[i]);
  }
  return altered;
}

/** How many frames a GIF or a WebP holds; 1 of all else. */
function frames(bytes) {
  if (bytes[0] === 0x47) return gifFrames(bytes);
  return bytes[0] === 0x52 ? webpFrames(bytes) : 1;
}

function gifFrames(bytes) {
  const table = (flags) => (flags & 0x80 ? 3 << ((flags & 7) + 1) : 0);
  let found = 0;
  for (let at = 13 + table(bytes[10]); at < bytes.length && bytes[at] !== 0x3b; at += 1) {
    if (bytes[at] === 0x2c) {
      found += 1;
      at += 11 + table(bytes[at + 9]);
    } else {
      at += 2;
    }
    while (bytes[at]) at += bytes[at] + 1;
  }
  return found;
}

function webpFrames(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let found = 0;
  for (let at = 12; at + 8 <= bytes.length; at += 8 + 2 * Math.ceil(view.getUint32(at + 4, true) / 2)) {
    if (view.getUint32(at) === 0x414e4d46) found += 1; // ANMF
  }
  return found || 1;
}

/** A picture the way up that its EXIF orientation (1 to 8, or none) says. */
function turned(picture) {
  const { width, height, channels, data, orientation = 1 } = picture;
  if (orientation < 2 || orientation > 8) return picture;
  const lying = orientation > 4;
  const [across, down] = lying ? [height, width] : [width, height];
  const out = new data.constructor(data.length);
  for (let y = 0; y < down; y++) {
    for (let x = 0; x < across; x++) {
      const [u, v] = lying ? [y, x] : [x, y];
      const column = [2, 3, 7, 8].includes(orientation) ? width - 1 - u : u;
      const row = [3, 4, 6, 7].includes(orientation) ? height - 1 - v : v;
      for (let c = 0; c < channels; c++) out[(y * across + x) * channels + c] = data[(row * width + column) * channels + c];
    }
  }
  return { width: across, height: down, channels, data: out };
}

/** One channel where all three are the same. */
function grayWhereGray(picture) {
  const { width, height, channels, data } = picture;
  if (channels === 1) return picture;
  const gray = new Uint8Array(width * height);
  for (let i = 0, at = 0; i < gray.length; i++, at += 3) {
    if (data[at] !== data[at + 1] || data[at] !== data[at + 2]) return picture;
    gray[i] = data[at];
  }
  return { width, height, channels: 1, data: gray };
}
