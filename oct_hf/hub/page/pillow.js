// Pillow's arithmetic, to the last bit: what the package resizes with decides the probabilities, and a canvas resizes otherwise.
// A picture is {width, height, channels, data}: channels 1 (gray) or 3, data a Uint8Array, row by row.

const PRECISION = 22; // bits after the point of a weight: 32 less 8 of a pixel and 2 to spare

const FILTERS = {
  box: { support: 0.5, at: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  bilinear: { support: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    at: (given) => {
      const x = Math.abs(given);
      if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
    },
  },
};

/** Which pixels, from `first`, make each new one, and their weights in fixed point. `length` may be a fraction of `size`. */
function weights(size, length, wanted, filter) {
  const scale = Math.fround(length) / wanted;
  const wide = Math.max(scale, 1);
  const support = filter.support * wide;
  return Array.from({ length: wanted }, (_, place) => {
    const center = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(size, Math.trunc(center + support + 0.5));
    const found = Array.from({ length: end - first }, (_, x) => filter.at((x + first - center + 0.5) * (1 / wide)));
    const sum = found.reduce((a, b) => a + b, 0);
    const fixed = found.map((weight) => {
      const share = (sum ? weight / sum : weight) * 2 ** PRECISION;
      return Math.trunc(share < 0 ? share - 0.5 : share + 0.5);
    });
    return { first, fixed: Int32Array.from(fixed) };
  });
}

/** One pass over `lines` lines of pixels that are `step` apart. */
function pass(data, table, { lines, lineStep, step, outLineStep, outStep, channels, size }) {
  const out = new Uint8ClampedArray(size);
  for (let line = 0; line < lines; line++) {
    for (let place = 0; place < table.length; place++) {
      const { first, fixed } = table[place];
      for (let channel = 0; channel < channels; channel++) {
        let at = line * lineStep + first * step + channel;
        let sum = 1 << (PRECISION - 1);
        for (let x = 0; x < fixed.length; x++, at += step) sum += data[at] * fixed[x];
        out[line * outLineStep + place * outStep + channel] = sum >> PRECISION;
      }
    }
  }
  return new Uint8Array(out.buffer);
}

/** `Image.resize` to width x height; `span` is the part of the picture from its corner that is taken, the whole if not given. */
export function resize(picture, width, height, kind, span = [picture.width, picture.height]) {
  const { channels } = picture;
  let { data } = picture;
  if (width !== picture.width || span[0] !== picture.width) {
    data = pass(data, weights(picture.width, span[0], width, FILTERS[kind]), {
      lines: picture.height, lineStep: picture.width * channels, step: channels,
      outLineStep: width * channels, outStep: channels, channels, size: width * picture.height * channels,
    });
  }
  if (height !== picture.height || span[1] !== picture.height) {
    data = pass(data, weights(picture.height, span[1], height, FILTERS[kind]), {
      lines: width, lineStep: channels, step: width * channels,
      outLineStep: channels, outStep: width * channels, channels, size: width * height * channels,
    });
  }
  return { width, height, channels, data };
}

/** `Image.reduce`, of a gray picture: the mean of blocks of fx x fy pixels, those at the far edges of what is left. */
export function reduce({ width, height, data }, fx, fy) {
  const across = Math.ceil(width / fx);
  const down = Math.ceil(height / fy);
  const out = new Uint8Array(across * down);
  for (let y = 0; y < down; y++) {
    const bottom = Math.min(height, (y + 1) * fy);
    for (let x = 0; x < across; x++) {
      const right = Math.min(width, (x + 1) * fx);
      const count = (bottom - y * fy) * (right - x * fx);
      let sum = count >> 1;
      for (let row = y * fy; row < bottom; row++) {
        for (let column = x * fx; column < right; column++) sum += data[row * width + column];
      }
      out[y * across + x] = Math.floor((sum * Math.trunc(Math.fround(2 ** 24 / count))) / 2 ** 24);
    }
  }
  return { width: across, height: down, channels: 1, data: out };
}

/** `Image.resize` with a box filter and `reducing_gap=1`, of a gray picture. */
export function boxed(picture, width, height) {
  const fx = Math.trunc(picture.width / width) || 1;
  const fy = Math.trunc(picture.height / height) || 1;
  if (fx === 1 && fy === 1) return resize(picture, width, height, "box");
  return resize(reduce(picture, fx, fy), width, height, "box", [picture.width / fx, picture.height / fy]);
}

/** `Image.convert("L")`: ITU-R 601 luma. */
export function toGray(picture) {
  if (picture.channels === 1) return picture;
  const { width, height, data } = picture;
  const gray = new Uint8Array(width * height);
  for (let i = 0, at = 0; i < gray.length; i++, at += 3) {
    gray[i] = (data[at] * 19595 + data[at + 1] * 38470 + data[at + 2] * 7471 + 0x8000) >> 16;
  }
  return { width, height, channels: 1, data: gray };
}
