// The page: what is chosen goes to the worker, what comes back is shown. Names and labels are only ever set as text.

import { atPoint, decide, predictiveValues } from "./answer.js";

const byId = (id) => document.getElementById(id);
const answers = []; // {file, probabilities, decision, likeness, error, item}
const waiting = [];
let model, ask, busy = false, requests = 0, loads = 0;

// --- the model -------------------------------------------------------------------------------------------------------

async function start() {
  model = await (await fetched("model.json")).json();
  describe();
  const kept = await keepFiles();
  const bytes = { [model.file.name]: model.file.bytes };
  const provider = await bestProvider();
  for (const name of [model.runtime.wasm, ...model.examples.map((one) => one.file)]) bytes[name] = model.sizes[name];
  const progress = progressOf(bytes);
  const [weights, wasm, ...pictures] = await Promise.all(Object.keys(bytes).map((name) => content(name, progress)));
  if ((await sha256(weights)) !== model.file.sha256) throw new Error(`${model.file.name} isn't the file that was published`);
  const examples = model.examples.map((one, i) => ({ bytes: pictures[i], probabilities: one.probabilities }));
  const runtime = { script: address(model.runtime.script), glue: address(model.runtime.glue) };
  const given = { runtime, wasm, weights, description: model, examples };
  ask = newWorker();
  let used = provider;
  let found;
  try {
    found = await ask("start", { ...given, provider });
  } catch (error) {
    if (provider === "wasm") throw error;
    used = "wasm";
    ask = newWorker();
    found = await ask("start", { ...given, provider: used });
  }
  loads = countRequests();
  ready(used, found.off, kept);
}

function address(name) {
  return new URL(name, document.baseURI).href;
}

async function fetched(name) {
  const response = await fetch(name, { cache: "no-cache" });
  if (!response.ok) throw new Error(`${name} can't be had (${response.status})`);
  return response;
}

async function bestProvider() {
  try {
    return (await navigator.gpu?.requestAdapter()) ? "webgpu" : "wasm";
  } catch {
    return "wasm";
  }
}

/** Has a service worker keep the page's files; false where this browser, or how the page is served, doesn't allow it. */
async function keepFiles() {
  if (!navigator.serviceWorker) return false;
  try {
    const registration = await navigator.serviceWorker.register("sw.js");
    registration.addEventListener("updatefound", () => watch(registration.installing));
    if (registration.active || !registration.installing) return Boolean(navigator.serviceWorker.controller);
    return await new Promise((resolve) => {
      navigator.serviceWorker.addEventListener("controllerchange", () => resolve(true), { once: true });
      registration.installing.addEventListener("statechange", ({ target }) => target.state === "redundant" && resolve(false));
      setTimeout(() => resolve(false), 15000);
    });
  } catch {
    return false;
  }
}

/** Says when a newer version of the page is ready to take over. */
function watch(worker) {
  worker.addEventListener("statechange", () => {
    if (worker.state === "installed" && navigator.serviceWorker.controller) {
      byId("newer").textContent = "A newer version is here: close this page and open it again.";
    }
  });
}

/** A function that is told of each byte that came, and shows how much of all is here. */
function progressOf(bytes) {
  const whole = Object.values(bytes).reduce((a, b) => a + b, 0);
  let here = 0;
  return (more) => {
    here += more;
    byId("progress").value = here / whole;
    byId("loaded").textContent = `Loading the model: ${megabytes(here)} of ${megabytes(whole)}`;
  };
}

async function content(name, progress) {
  const reader = (await fetched(name)).body.getReader();
  const pieces = [];
  for (let next = await reader.read(); !next.done; next = await reader.read()) {
    pieces.push(next.value);
    progress(next.value.length);
  }
  return new Uint8Array(await new Blob(pieces).arrayBuffer());
}

async function sha256(bytes) {
  if (!crypto.subtle) return model.file.sha256; // a page without TLS, not on this machine: nothing to compare with
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A function that asks a new worker and gives a promise of its answer. */
function newWorker() {
  const source = new Blob([`import ${JSON.stringify(address("work.js"))};`], { type: "text/javascript" });
  const url = URL.createObjectURL(source);
  const worker = new Worker(url, { type: "module" });
  const open = new Map();
  let number = 0;
  worker.onmessage = ({ data: { id, result, error, refused } }) => {
    const { resolve, reject } = open.get(id);
    open.delete(id);
    if (error === undefined) resolve(result);
    else reject(Object.assign(new Error(error), { refused }));
  };
  worker.onerror = (event) => {
    for (const { reject } of open.values()) reject(new Error(event.message || "the worker can't be started"));
    open.clear();
  };
  return (what, given) =>
    new Promise((resolve, reject) => {
      open.set(++number, { resolve, reject });
      worker.postMessage({ id: number, what, given });
    });
}

function ready(provider, off, kept) {
  byId("loading").hidden = true;
  const compared = model.examples.length
    ? ` It gives the published answers to its ${model.examples.length} examples, to ${Math.max(off, 1e-6).toFixed(6)}.`
    : "";
  byId("status").textContent = `Ready, on ${provider === "webgpu" ? "the graphics processor (WebGPU)" : "the processor (WebAssembly)"}.${compared}`;
  document.documentElement.dataset.provider = provider;
  byId("offline").textContent = kept
    ? "The page and the model are kept in this browser: it opens without a network from now on."
    : "The page isn't kept in this browser, so it needs the network when it is opened again.";
  byId("examples").hidden = !model.examples.length;
  tellRequests();
  next();
}

function fail(error) {
  byId("loading").hidden = true;
  problem(`The model can't be loaded: ${error.message}`);
}

function problem(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

// --- what was sent ---------------------------------------------------------------------------------------------------

function countRequests() {
  return performance.getEntriesByType("resource").length;
}

function tellRequests() {
  requests = countRequests() - loads;
  byId("sent").textContent =
    `Nothing was sent. Since the model was loaded this page made ${requests === 1 ? "1 request" : `${requests} requests`}, ` +
    "and its policy (Content-Security-Policy) allows it none to any other address than the one it came from.";
}

// --- pictures --------------------------------------------------------------------------------------------------------

/** Takes files, in the order of their names. */
function take(files) {
  const sorted = [...files].sort((a, b) => nameOf(a).localeCompare(nameOf(b), "en", { numeric: true }));
  if (!sorted.length) return;
  problem("");
  waiting.push(...sorted);
  byId("answers").hidden = false;
  tell();
  next();
}

function nameOf(file) {
  return file.path || file.webkitRelativePath || file.name;
}

async function next() {
  if (busy || !ask || document.documentElement.dataset.provider === undefined) return;
  busy = true;
  while (waiting.length) {
    const file = waiting.shift();
    const answer = { file: nameOf(file) };
    answers.push(answer);
    tell();
    try {
      Object.assign(answer, await ask("read", { bytes: new Uint8Array(await file.arrayBuffer()) }));
      answer.decision = decide(model, answer.probabilities, answer.likeness);
    } catch (error) {
      answer.error = ["NotReadableError", "NotFoundError"].includes(error.name) ? "can't be opened" : error.message;
      answer.refused = error.refused ?? true;
    }
    if (!answers.includes(answer)) continue; // cleared meanwhile
    show(answer);
    tell();
  }
  busy = false;
  tellRequests();
}

function show(answer) {
  const item = byId("answer").content.cloneNode(true).firstElementChild;
  answer.item = item;
  item.querySelector("h3").textContent = answer.file;
  const said = item.querySelector(".said");
  const canvas = item.querySelector("canvas");
  if (answer.error) {
    item.classList.add("unread");
    said.textContent = answer.refused ? `Couldn't be read: it ${answer.error}.` : `Couldn't be answered: ${answer.error}`;
    canvas.remove();
    item.querySelector("table").remove();
  } else {
    item.classList.add(answer.decision.kind);
    said.textContent = answer.decision.text;
    draw(canvas, answer);
    bars(item.querySelector("table"), answer);
  }
  byId("list").append(item);
  delete answer.preview;
  cut(answer);
}

function draw(canvas, { file, preview, width, height }) {
  [canvas.width, canvas.height] = [preview.width, preview.height];
  canvas.getContext("2d").putImageData(new ImageData(preview.rgba, preview.width, preview.height), 0, 0);
  canvas.setAttribute("aria-label", `${file}, ${width} × ${height} pixels`);
}

function bars(table, answer) {
  const caption = table.createCaption();
  caption.textContent = answer.decision.kind === "refused" ? "What the network alone says" : "Probabilities";
  const order = model.labels.map((_, i) => i);
  if (!model.several) order.sort((a, b) => answer.probabilities[b] - answer.probabilities[a]);
  for (const index of order) {
    const row = table.tBodies[0].insertRow();
    const name = document.createElement("th");
    name.scope = "row";
    name.textContent = model.labels[index].name;
    name.title = model.labels[index].means;
    row.append(name);
    const bar = document.createElement("div");
    bar.className = "bar";
    const part = document.createElement("div");
    part.style.width = `${100 * answer.probabilities[index]}%`; // the policy forbids style attributes, not this
    bar.append(part);
    row.insertCell().append(bar);
    row.insertCell().textContent = percent(answer.probabilities[index]);
  }
}

function percent(share) {
  if (share === null) return "n/a";
  if (share > 0 && share < 0.001) return "< 0.1 %";
  if (share < 1 && share > 0.999) return "> 99.9 %";
  return `${(100 * share).toFixed(1)} %`;
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

/** How many of which answer, and how many are still to come. */
function tell() {
  const counts = new Map();
  for (const { decision, error } of answers) {
    if (!decision && !error) continue;
    const text = error ? "couldn't be read" : decision.kind === "unsure" ? "unsure" : decision.text;
    counts.set(text, (counts.get(text) ?? 0) + 1);
  }
  const done = [...counts.values()].reduce((a, b) => a + b, 0);
  const all = answers.length + waiting.length;
  const parts = [...counts].sort((a, b) => b[1] - a[1]).map(([text, count]) => `${count} ${text}`);
  byId("summary").textContent = done ? `${done} of ${all}: ${parts.join(", ")}.` : "";
  if (all) byId("status").textContent = done < all ? `${done} of ${all} answered…` : `${all} answered.`;
}

// --- where to cut ----------------------------------------------------------------------------------------------------

function pointChosen() {
  const point = model.points[byId("point").value];
  for (const answer of answers) cut(answer);
  const box = byId("at-point");
  box.replaceChildren();
  byId("prevalence").disabled = !point;
  if (!point) return;
  const lines = [
    `${point.labels.join(" or ")} is called where its probability is at least ${point.threshold.toPrecision(3)}, a threshold chosen on validation.`,
    `On ${point.cases} test B-scans: sensitivity ${percent(point.sensitivity)}, specificity ${percent(point.specificity)}.`,
  ];
  const given = byId("prevalence").valueAsNumber;
  if (given >= 0 && given <= 100 && point.sensitivity !== null && point.specificity !== null) {
    const { ppv, npv } = predictiveValues(point.sensitivity, point.specificity, given / 100);
    lines.push(`Where ${given} % of the B-scans show it: of those called, ${percent(ppv)} are right (PPV); of the others, ${percent(npv)} (NPV).`);
  }
  for (const line of lines) {
    const p = document.createElement("p");
    p.textContent = line;
    box.append(p);
  }
}

function cut(answer) {
  const point = model.points[byId("point").value];
  const line = answer.item?.querySelector(".cut");
  if (!line) return;
  line.hidden = !point || !answer.decision || answer.decision.kind === "refused";
  if (line.hidden) return;
  const { positive, score } = atPoint(model, point, answer.probabilities);
  line.textContent = `${point.name}: ${positive ? "positive" : "negative"} (${percent(score)})`;
}

// --- what the page says of itself ------------------------------------------------------------------------------------

function describe() {
  document.title = `${model.name}: retinal OCT classifier`;
  byId("name").textContent = model.name;
  for (const [name, text] of model.facts) {
    const term = document.createElement("dt");
    term.textContent = name;
    const detail = document.createElement("dd");
    detail.textContent = text;
    byId("facts").append(term, detail);
  }
  for (const text of model.limits) {
    const item = document.createElement("li");
    item.textContent = text;
    byId("limits").append(item);
  }
  byId("warning").textContent = model.warning;
  byId("points").hidden = !model.points.length;
  byId("point").append(new Option("the answer as it stands", ""));
  model.points.forEach((point, index) => byId("point").append(new Option(`${point.name}, ${point.target}`, index)));
  byId("sent").textContent = "Nothing is sent: the page's policy (Content-Security-Policy) allows it no other address than the one it came from.";
  pointChosen();
}

// --- CSV -------------------------------------------------------------------------------------------------------------

// Orders to a terminal, and what turns the direction in which text is shown.
const ORDERS = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;

/** The columns of `oct-hf predict`. */
function csv() {
  const head = ["file", "predicted", "answer", ...model.labels.map(({ name }) => `p_${name}`), "error"];
  const rows = answers.map(({ file, decision, probabilities, error }) => [
    file,
    decision?.predicted ?? "",
    decision?.text ?? "",
    ...model.labels.map((_, i) => probabilities?.[i] ?? ""),
    error ?? "",
  ]);
  // As oct_hf/untrusted.py: control codes to be seen and not obeyed, and a ' before what a spreadsheet would compute.
  const code = (sign) => sign.charCodeAt(0).toString(16);
  const spelt = (sign) => (sign < "\u0100" ? `\\x${code(sign).padStart(2, "0")}` : `\\u${code(sign).padStart(4, "0")}`);
  const text = (value) => {
    if (typeof value !== "string") return String(value);
    const shown = value.replaceAll(ORDERS, spelt);
    return /^[=+\-@\t\n]/.test(shown) ? `'${shown}` : shown;
  };
  const quoted = (value) => (/[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const field = (value) => quoted(text(value));
  return [head, ...rows].map((row) => row.map(field).join(",") + "\n").join("");
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  link.download = "answers.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function clear() {
  waiting.length = 0;
  answers.length = 0;
  byId("list").replaceChildren();
  byId("answers").hidden = true;
  byId("status").textContent = "";
  byId("files").focus();
}

// --- ways in ---------------------------------------------------------------------------------------------------------

/** The files of what was dropped, those in folders with the path inside. */
async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  return (await Promise.all(entries.map(filesBelow))).flat();
}

async function filesBelow(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    file.path = entry.fullPath.replace(/^\//, "");
    return file.name.startsWith(".") ? [] : [file];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // at most 100 at a time
    if (!some.length) return (await Promise.all(found.map(filesBelow))).flat();
    found.push(...some);
  }
}

async function showExamples() {
  const files = model.examples.map(async ({ file }) => new File([await (await fetched(file)).blob()], file.split("/").pop()));
  take(await Promise.all(files));
}

function listen() {
  byId("files").addEventListener("change", ({ target }) => {
    take(target.files);
    target.value = "";
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    byId("drop").classList.add("over");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) byId("drop").classList.remove("over");
  });
  addEventListener("drop", async (event) => {
    event.preventDefault();
    byId("drop").classList.remove("over");
    const files = await droppedFiles(event.dataTransfer).catch(() => []);
    if (files.length) take(files);
    else problem("What was dropped holds no file.");
  });
  addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) take(event.clipboardData.files);
  });
  byId("examples").addEventListener("click", () => showExamples().catch((error) => problem(error.message)));
  byId("save").addEventListener("click", save);
  byId("clear").addEventListener("click", clear);
  byId("point").addEventListener("change", pointChosen);
  byId("prevalence").addEventListener("input", pointChosen);
}

listen();
start().catch(fail);
