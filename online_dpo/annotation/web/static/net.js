// Requests to this server. A change is sent with the page's token; whatever did not arrive is sent again.

const csrf = document.querySelector('meta[name="csrf"]')?.content ?? "";
const LONGEST_WAIT_MS = 10000;

/** A reply that is no success: `status` 0 means that none came. */
export class Failure extends Error {
  constructor(status, words, retryAfter) {
    super(words);
    this.status = status;
    this.retryAfter = retryAfter;
  }
  /** Whether the same request may succeed in a while. */
  get passes() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

export async function get(path) {
  return read(await reach(path, {}));
}

export async function post(path, values = {}) {
  return read(await reach(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ csrf, ...values }),
  }));
}

/** Send until a reply comes that is worth having. `waiting(failure)` is told of each try that failed. */
export async function persist(path, values, waiting) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await post(path, values);
    } catch (failure) {
      if (!(failure instanceof Failure) || !failure.passes) throw failure;
      waiting(failure);
      await pause(failure.retryAfter ?? Math.min(500 * 2 ** tries, LONGEST_WAIT_MS));
    }
  }
}

/** Send while the page goes away. */
export function farewell(path, values = {}) {
  const body = JSON.stringify({ csrf, ...values });
  navigator.sendBeacon(path, new Blob([body], { type: "application/json" }));
}

async function reach(path, options) {
  try {
    return await fetch(path, { ...options, cache: "no-store", credentials: "same-origin" });
  } catch {
    throw new Failure(0, "There is no connection to the server.");
  }
}

async function read(response) {
  const reply = await response.json().catch(() => ({}));
  if (response.ok) return reply;
  const seconds = Number(response.headers.get("Retry-After"));
  throw new Failure(response.status, reply.error ?? "The server cannot answer.", seconds ? seconds * 1000 : undefined);
}

/** Wait, but not past the moment at which the connection comes back. */
function pause(ms) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      removeEventListener("online", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    addEventListener("online", done);
  });
}
