// transformers.js as a stranger runs it: node load_by_id.mjs HUB CACHE REPOSITORY PIXELS.json IMAGE …
// Prints JSON: the probabilities of the normalised pixels, and those of the images by the library's own processor.
import { readFileSync } from "node:fs";
import { AutoConfig, AutoModelForImageClassification, Tensor, env, pipeline, softmax } from "@huggingface/transformers";

const [hub, cache, repo, pixelsFile, ...images] = process.argv.slice(2);
env.remoteHost = hub;
env.cacheDir = cache;

const config = await AutoConfig.from_pretrained(repo);
config.model_type = "efficientnet"; // transformers.js knows no timm_wrapper; any image classifier will do
const options = { config, dtype: "fp32" };

const { shape, values } = JSON.parse(readFileSync(pixelsFile));
const model = await AutoModelForImageClassification.from_pretrained(repo, options);
const { logits } = await model({ pixel_values: new Tensor("float32", Float32Array.from(values), shape) });
const pixels = logits.tolist().map((row) => softmax(row));

const classify = await pipeline("image-classification", repo, options);
classify.processor.image_processor.resample = 1; // Lanczos, the one antialiased resizing that it has in Node
const labels = Object.values(config.id2label);
const files = [];
for (const image of images) {
  const answer = Object.fromEntries((await classify(image, { top_k: labels.length })).map((a) => [a.label, a.score]));
  files.push(labels.map((label) => answer[label]));
}
console.log(JSON.stringify({ pixels, files }));
