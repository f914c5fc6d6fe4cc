// Gray levels of more than 8 bits to 8, as the package scales them.

import { Refused } from "./refused.js";

const FULL_SCALES = [255, 4095, 65535];

/** Uint8Array of values above 255: by the smallest full scale that holds them, floats by their largest. */
export function eightBits(values, floats = false) {
  let largest = -Infinity;
  for (const value of values) {
    if (!Number.isFinite(value)) throw new Refused("can't be decoded (it holds values that are not finite)");
    if (value > largest) largest = value;
  }
  const full = floats ? largest || 1 : FULL_SCALES.find((scale) => largest <= scale) ?? largest;
  const factor = 255 / full;
  return Uint8Array.from(values, (value) => Math.min(255, Math.max(0, rounded(value * factor))));
}

/** To the nearest whole number, from the middle to the even one. */
export function rounded(value) {
  const down = Math.floor(value);
  const rest = value - down;
  return rest > 0.5 || (rest === 0.5 && down % 2) ? down + 1 : down;
}
