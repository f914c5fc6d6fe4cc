// zlib's streams, by the browser.

import { Refused } from "./refused.js";

/** Uint8Array of what some pieces of one zlib stream hold. */
export async function inflated(pieces) {
  try {
    const stream = new Blob(pieces).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  } catch {
    throw new Refused("can't be decoded (its compressed pixels are damaged or cut off)");
  }
}
