// TIFF to pixels, of the kinds that OCT exports have: one picture in strips, gray of 8, 16 or 32 bits or colour, unpacked,
// PackBits, LZW or deflate. Browsers read none.

import { Refused } from "./refused.js";
import { eightBits } from "./scaled.js";
import { inflated } from "./inflated.js";

const TAGS = {
  256: "width", 257: "height", 258: "bits", 259: "compression", 262: "photometric", 266: "fillOrder", 273: "offsets",
  274: "orientation", 277: "samples", 278: "rows", 279: "counts", 284: "planar", 317: "predictor", 320: "palette",
  322: "tiles", 339: "format",
};
const READERS = { 1: "getUint8", 3: "getUint16", 4: "getUint32" }; // by the type of a tag's values
const BYTES = { 1: 1, 3: 2, 4: 4 };

/** {width, height, channels, data, orientation}; `check` refuses by size and frames. */
export async function decodeTiff(bytes, check) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const little = view.getUint16(0) === 0x4949;
  const { tags, frames } = directories(view, little);
  const { width, height, samples = 1, compression = 1, photometric, predictor = 1 } = tags;
  check(width, height, frames);
  const bits = [tags.bits ?? 1].flat();
  const format = [tags.format ?? 1].flat()[0];
  const depth = bits[0];
  const colour = photometric === 2;
  const known =
    bits.every((other) => other === depth) &&
    ((format === 1 && (depth === 8 || depth === 16)) || (format === 3 && depth === 32 && !colour && predictor === 1)) &&
    (photometric <= 2 || (photometric === 3 && depth === 8)) &&
    (photometric !== 0 || depth === 8) &&
    (colour ? samples >= 3 : samples === 1) &&
    !tags.tiles && (tags.planar ?? 1) === 1 && (tags.fillOrder ?? 1) === 1 && tags.offsets !== undefined;
  if (!known) throw new Refused("can't be read: a TIFF of a kind that this page doesn't know; save it as PNG");
  const raw = await strips(bytes, tags, compression, (width * height * samples * depth) / 8);
  const values = valuesOf(raw, depth, format, little);
  if (predictor === 2) undoDifferences(values, width * samples, samples);
  return { width, height, ...picture(values, tags, depth, format), orientation: tags.orientation };
}

/** The first picture's tags, and how many pictures there are. */
function directories(view, little) {
  let tags;
  let frames = 0;
  for (let at = view.getUint32(4, little); at; frames++) {
    const entries = view.getUint16(at, little);
    if (!tags) {
      tags = {};
      for (let entry = 0; entry < entries; entry++) read(view, little, at + 2 + 12 * entry, tags);
    }
    if (frames > 10000) throw new Refused("can't be decoded (the TIFF's list of pictures has no end)");
    at = view.getUint32(at + 2 + 12 * entries, little);
  }
  return { tags, frames };
}

function read(view, little, at, tags) {
  const name = TAGS[view.getUint16(at, little)];
  const kind = view.getUint16(at + 2, little);
  if (!name || !READERS[kind]) return;
  const count = view.getUint32(at + 4, little);
  const from = count * BYTES[kind] <= 4 ? at + 8 : view.getUint32(at + 8, little);
  const values = Array.from({ length: count }, (_, i) => view[READERS[kind]](from + i * BYTES[kind], little));
  tags[name] = count === 1 ? values[0] : values;
}

/** The bytes of all strips, unpacked. */
async function strips(bytes, tags, compression, size) {
  const [offsets, counts] = [[tags.offsets].flat(), [tags.counts ?? size].flat()];
  const out = new Uint8Array(size);
  let at = 0;
  for (let i = 0; i < offsets.length; i++) {
    const strip = await unpacked(bytes.subarray(offsets[i], offsets[i] + counts[i]), compression);
    out.set(strip.subarray(0, size - at), at);
    at += strip.length;
  }
  if (at < size) throw new Refused("can't be decoded (the TIFF is cut off)");
  return out;
}

function unpacked(packed, compression) {
  if (compression === 1) return packed;
  if (compression === 5) return lzw(packed);
  if (compression === 8 || compression === 32946) return inflated([packed]);
  if (compression === 32773) return packBits(packed);
  throw new Refused(`can't be read: a TIFF with compression ${compression}; save it as PNG`);
}

function packBits(packed) {
  const out = [];
  for (let at = 0; at < packed.length; ) {
    const count = packed[at++];
    if (count < 128) for (const end = at + count + 1; at < end; ) out.push(packed[at++]);
    else if (count > 128) for (let i = 257 - count, value = packed[at++]; i; i--) out.push(value);
  }
  return Uint8Array.from(out);
}

/** TIFF's LZW: codes of 9 to 12 bits, the upper bit first, one bit more one code early. */
function lzw(packed) {
  const [CLEAR, END] = [256, 257];
  let out = new Uint8Array(packed.length * 4);
  let [size, bits, kept, at] = [0, 0, 0, 0];
  // Each code stands for a piece of what was written before: where it begins, and its length.
  const [begins, lengths] = [new Uint32Array(4097), new Uint32Array(4097)];
  let [next, wide, previous] = [258, 9, -1];
  for (;;) {
    while (bits < wide && at < packed.length) {
      kept = ((kept << 8) | packed[at++]) & 0xffffff;
      bits += 8;
    }
    if (bits < wide) break;
    const code = (kept >> (bits - wide)) & ((1 << wide) - 1);
    bits -= wide;
    if (code === END) break;
    if (code === CLEAR) {
      [next, wide, previous] = [258, 9, -1];
      continue;
    }
    if (code > next || (code === next && previous < 0)) throw new Refused("can't be decoded (the TIFF is damaged)");
    if (previous >= 0 && next < 4096) {
      // The piece before, and the first byte of this one, which is written right behind it.
      begins[next] = previous;
      lengths[next] = size - previous + 1;
      next += 1;
    }
    previous = size;
    const length = code < 256 ? 1 : lengths[code];
    if (size + length > out.length) {
      const larger = new Uint8Array(2 * out.length + length);
      larger.set(out);
      out = larger;
    }
    if (code < 256) out[size++] = code;
    else for (let i = 0; i < length; i++) out[size++] = out[begins[code] + i];
    wide = next >= 2047 ? 12 : next >= 1023 ? 11 : next >= 511 ? 10 : 9;
  }
  return out.subarray(0, size);
}

function valuesOf(raw, depth, format, little) {
  if (depth === 8) return raw;
  const view = new DataView(raw.buffer, raw.byteOffset, raw.length);
  if (format === 3) return Float32Array.from({ length: raw.length / 4 }, (_, i) => view.getFloat32(4 * i, little));
  return Uint16Array.from({ length: raw.length / 2 }, (_, i) => view.getUint16(2 * i, little));
}

/** Each value was stored as its difference from the one to the left. */
function undoDifferences(values, length, samples) {
  for (let start = 0; start < values.length; start += length) {
    for (let i = start + samples; i < start + length; i++) values[i] += values[i - samples];
  }
}

function picture(values, { photometric, samples = 1, palette }, depth, format) {
  if (photometric === 3) {
    const data = new Uint8Array(values.length * 3);
    for (let i = 0; i < values.length; i++) {
      for (let c = 0; c < 3; c++) data[3 * i + c] = palette[256 * c + values[i]] >> 8;
    }
    return { channels: 3, data };
  }
  if (photometric === 2) {
    const data = new Uint8Array((values.length / samples) * 3);
    for (let i = 0; i < data.length / 3; i++) {
      for (let c = 0; c < 3; c++) data[3 * i + c] = depth === 16 ? values[samples * i + c] >> 8 : values[samples * i + c];
    }
    return { channels: 3, data };
  }
  if (depth > 8) return { channels: 1, data: eightBits(values, format === 3) };
  return { channels: 1, data: photometric === 0 ? values.map((value) => 255 - value) : values };
}
