// Keeps the question of this page while somebody looks at it, and gives it back when the page is closed.
import { farewell, post } from "./net.js";

const leaseMs = Number(document.querySelector('meta[name="lease-s"]').content) * 1000;
const RENEW_MS = Math.max(1000, Math.min(leaseMs / 3, 60000));
const TABS = "tabs";
const TAB_MS = 90000; // browsers wake a hidden page once in a minute
const tab = String(Math.random());

let assignment = null;
let onLost = () => {};
let lastActive = Date.now();
let lastRenewed = 0;
let seenMs = 0;
let seenSince = null;

/** Watch over a question; `lost(reply)` is told when it is over. Returns nothing. */
export function hold(id, lost) {
  assignment = id;
  onLost = lost;
  lastActive = lastRenewed = Date.now();
  seenMs = 0;
  seenSince = document.hidden ? null : performance.now();
}

export function letGo() {
  assignment = null;
}

/** For how many seconds the question was in sight. */
export function seconds() {
  return (seenMs + (seenSince === null ? 0 : performance.now() - seenSince)) / 1000;
}

async function renew() {
  const id = assignment;
  if (id === null) return;
  lastRenewed = Date.now();
  try {
    const reply = await post("/api/renew", { assignment: id });
    if (!reply.kept && id === assignment) onLost(reply);
  } catch {
    // The next attempt comes soon; a vote says more clearly what is wrong.
  }
}

// Who has left the page open does not keep others from the question.
setInterval(() => {
  register();
  if (Date.now() - lastActive < leaseMs) renew();
}, RENEW_MS);

for (const kind of ["pointermove", "pointerdown", "keydown", "wheel", "touchstart", "scroll"]) {
  addEventListener(kind, active, { passive: true, capture: true });
}

function active() {
  const away = Date.now() - lastRenewed > RENEW_MS * 1.5;
  lastActive = Date.now();
  if (away) renew();
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    if (seenSince !== null) seenMs += performance.now() - seenSince;
    seenSince = null;
  } else {
    seenSince = performance.now();
    lastActive = Date.now();
    renew(); // another tab may have answered
  }
});

// Tabs of one person show the same question: the last one that is closed gives it back.
function tabs() {
  const known = JSON.parse(localStorage.getItem(TABS) ?? "{}");
  return Object.fromEntries(Object.entries(known).filter(([name, at]) => name !== tab && Date.now() - at < TAB_MS));
}

function register() {
  localStorage.setItem(TABS, JSON.stringify({ ...tabs(), [tab]: Date.now() }));
}

addEventListener("pagehide", () => {
  const others = tabs();
  localStorage.setItem(TABS, JSON.stringify(others));
  if (assignment !== null && !Object.keys(others).length) farewell("/api/release", { assignment });
});
register();
