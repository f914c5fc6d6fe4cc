// Keeps the page's files on this machine, so that it opens without a network. Before it stand FILES and VERSION, written with
// the page; a page with other files is another version, which takes over when this one is closed. It fetches nothing else.

const KEPT = `oct-page-${VERSION}`;
const LARGE = /\.(wasm|onnx)$/; // kept when they are first asked for, so that they come once and the page shows how far they are

self.addEventListener("install", (event) => {
  const fresh = FILES.filter((name) => !LARGE.test(name)).map((name) => new Request(name || "./", { cache: "no-cache" }));
  event.waitUntil(caches.open(KEPT).then((kept) => kept.addAll(fresh)));
});

self.addEventListener("activate", (event) => {
  event.waitUntil(forgetOthers().then(() => self.clients.claim()));
});

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  const name = url.pathname.slice(new URL(self.registration.scope).pathname.length);
  if (event.request.method !== "GET" || url.origin !== self.location.origin || !FILES.includes(name)) return;
  event.respondWith(keptOrFetched(name || "./"));
});

async function keptOrFetched(name) {
  const kept = await caches.open(KEPT);
  const found = await kept.match(name);
  if (found) return found;
  const fetched = await fetch(name, { cache: "no-cache" });
  if (fetched.status === 200) await kept.put(name, fetched.clone()).catch(() => {}); // a full disk keeps nobody from reading
  return fetched;
}

async function forgetOthers() {
  for (const name of await caches.keys()) if (name.startsWith("oct-page-") && name !== KEPT) await caches.delete(name);
}
