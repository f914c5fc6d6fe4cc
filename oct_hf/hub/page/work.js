// The worker: a picture file's bytes in, probabilities out. It is started from a blob so that the page's policy holds in it too,
// which a worker loaded from an address of its own would not inherit.

import { decode } from "./decode.js";
import { resize } from "./pillow.js";
import { likeness } from "./likeness.js";
import { probabilitiesOf } from "./answer.js";
import { Refused } from "./refused.js";

const PREVIEW = 320; // pixels across
const NEAR = 1e-3; // how far an answer may be from the one that the model's repository gives

let ort, model, session, levels;

const handlers = {
  /** Loads the network, and gives the largest difference of its answers from those that were published. */
  async start({ provider, runtime, wasm, weights, description, examples }) {
    ort ??= await import(runtime.script);
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmPaths = { mjs: runtime.glue };
    if (wasm) ort.env.wasm.wasmBinary = wasm;
    ort.env.logLevel = "error";
    model = description;
    levels = [0, 1, 2].map((channel) => levelsOf(model.input, channel));
    session = await ort.InferenceSession.create(weights, { executionProviders: [provider] });
    let off = 0;
    for (const { bytes, probabilities } of examples) {
      const found = await answered(await decode(bytes));
      found.forEach((value, i) => (off = Math.max(off, Math.abs(value - probabilities[i]))));
    }
    if (!(off <= NEAR)) throw new Error(`its answers are ${off.toPrecision(1)} from the published ones`);
    return { off };
  },

  async read({ bytes }) {
    const picture = await decode(bytes);
    const probabilities = await answered(picture);
    const like = model.likeness ? likeness(picture, model.likeness) : undefined;
    return { probabilities, likeness: like, preview: preview(picture), width: picture.width, height: picture.height };
  },
};

/** What each gray level is in a channel of the network's input, in float32 as the package computes it. */
function levelsOf({ mean, std }, channel) {
  const [middle, width] = [Math.fround(mean[channel]), Math.fround(std[channel])];
  return Float32Array.from({ length: 256 }, (_, level) => Math.fround(Math.fround(level * (1 / 255)) - middle) / width);
}

async function answered(picture) {
  const { height, width, interpolation } = model.input;
  const { data, channels } = resize(picture, width, height, interpolation);
  const pixels = new Float32Array(3 * height * width);
  for (let c = 0; c < 3; c++) {
    const from = channels === 3 ? c : 0;
    for (let i = 0; i < height * width; i++) pixels[c * height * width + i] = levels[c][data[i * channels + from]];
  }
  const input = new ort.Tensor("float32", pixels, [1, 3, height, width]);
  const { logits } = await session.run({ pixel_values: input });
  return probabilitiesOf(logits.data, model.several);
}

function preview(picture) {
  const width = Math.min(PREVIEW, picture.width);
  const height = Math.max(1, Math.min(2 * width, Math.round((picture.height * width) / picture.width)));
  const { data, channels } = resize(picture, width, height, "bilinear");
  const rgba = new Uint8ClampedArray(4 * width * height).fill(255);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) rgba[4 * i + c] = data[i * channels + (channels === 3 ? c : 0)];
  }
  return { width, height, rgba };
}

let last = Promise.resolve(); // one after the other: the network answers one picture at a time

self.onmessage = ({ data: { id, what, given } }) => {
  last = last.then(async () => {
    try {
      self.postMessage({ id, result: await handlers[what](given) });
    } catch (error) {
      const text = String(error?.message ?? error).split("\n")[0];
      self.postMessage({ id, error: text, refused: error instanceof Refused });
    }
  });
};
