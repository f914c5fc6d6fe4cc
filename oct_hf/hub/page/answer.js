// From a network's outputs to an answer: oct_hf/inference/gate.py in the browser.

const TOLERANCE = 1e-5; // of a score: probabilities are float32
const NOT_OCT = "not an OCT B-scan";

/** Probabilities of logits: a softmax, or a sigmoid each where a picture may have several labels. */
export function probabilitiesOf(logits, several) {
  if (several) return Array.from(logits, (logit) => 1 / (1 + Math.exp(-logit)));
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

/**
 * What is said of one picture: {kind, text, predicted}, kind "label", "unsure", "refused" or "signs".
 * `model` is model.json; `likeness` undefined where the model's gate doesn't ask for it.
 */
export function decide(model, probabilities, likeness) {
  const { gate, several } = model;
  const labels = model.labels.map((label) => label.name);
  if (gate?.likeness != null && likeness < gate.likeness) return { kind: "refused", text: NOT_OCT, predicted: "" };
  if (several) return bySigns(model, labels, probabilities);
  const order = labels.map((_, i) => i).sort((a, b) => probabilities[b] - probabilities[a] || a - b);
  const inside = gate?.conformal ? predictionSet(probabilities, gate.conformal, labels) : [];
  const left = order.filter((index, place) => place === 0 || inside[index]).map((index) => labels[index]);
  if (left.length === 1) return { kind: "label", text: left[0], predicted: left[0] };
  return { kind: "unsure", text: `unsure: ${left.slice(0, -1).join(", ")} or ${left.at(-1)}`, predicted: left[0] };
}

/** Whether each label can't be ruled out. */
function predictionSet(probabilities, { score, threshold }, labels) {
  return probabilities.map((own, index) => {
    const limit = threshold !== null && typeof threshold === "object" ? threshold[labels[index]] : threshold;
    return limit === null || scores[score](own, probabilities) <= limit + TOLERANCE;
  });
}

const scores = {
  lac: (own) => 1 - own,
  aps: (own, all) => all.reduce((sum, other) => (other >= own ? sum + other : sum), 0),
};

function bySigns({ gate, diseases, healthy }, labels, probabilities) {
  const cut = (name) => (gate?.thresholds ? gate.thresholds[name] : 0.5);
  const found = labels.filter((name, index) => cut(name) !== null && probabilities[index] >= cut(name));
  const disease = diseases.find(([, signs]) => signs.some((sign) => found.includes(sign)))?.[0] ?? healthy;
  return { kind: "signs", text: `${disease}: ${found.join(", ") || "no sign"}`, predicted: disease };
}

/** Whether a picture is positive at an operating point, and its score. */
export function atPoint(model, point, probabilities) {
  const score = model.labels.reduce((sum, { name }, i) => (point.labels.includes(name) ? sum + probabilities[i] : sum), 0);
  return { score, positive: score >= point.threshold - TOLERANCE };
}

/** Predictive values where the disease is as frequent as `prevalence`, by Bayes' theorem; null of 0 cases. */
export function predictiveValues(sensitivity, specificity, prevalence) {
  const [tp, fn] = [sensitivity * prevalence, (1 - sensitivity) * prevalence];
  const [tn, fp] = [specificity * (1 - prevalence), (1 - specificity) * (1 - prevalence)];
  return { ppv: tp + fp ? tp / (tp + fp) : null, npv: tn + fn ? tn / (tn + fn) : null };
}
