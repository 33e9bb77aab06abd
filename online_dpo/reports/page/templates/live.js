// A served page asks how far the run is. When something was committed that it shows, it loads itself anew, once its
// reader pauses, and is then as the reader left it: place, filters, searches, what was unfolded, focus.
(() => {
  const mine = document.querySelector('meta[name="live"]').content, progress = document.getElementById("progress");
  const status = make("p", "live", "");
  status.setAttribute("role", "status");
  document.querySelector(".state").after(status);

  // An element that outlives a reload: the nearest one with an id, and which of its kind beneath.
  const address = (node) => {
    const root = node.closest("[id]"), tag = node.tagName;
    return root && root !== node ? [root.id, tag, [...root.querySelectorAll(tag)].indexOf(node)] : root ? [root.id] : null;
  };
  const at = (place) => {
    const root = place && document.getElementById(place[0]);
    return root && place.length > 1 ? root.querySelectorAll(place[1])[place[2]] : root;
  };
  const fields = () => [...document.querySelectorAll("form[id] [name]")];
  const touched = new Set(); // what the reader chose
  let isRestoring = false;
  const isSeen = (node) => {
    const box = (node.closest("section") || node).getBoundingClientRect();
    return box.bottom > 0 && box.top < innerHeight;
  };

  const keep = () => {
    const anchors = [...document.querySelectorAll("main [id]")]
      .filter((node) => node.getClientRects().length && node.getBoundingClientRect().top <= 1);
    const anchor = scrollY > 0 ? anchors[anchors.length - 1] : null, focused = document.activeElement;
    return {
      anchor: anchor ? [address(anchor), anchor.getBoundingClientRect().top] : null,
      // What nobody chose and nobody looks at may follow the newest round.
      fields: fields().filter((field) => touched.has(String(address(field))) || isSeen(field))
        .map((field) => [address(field), field.value, touched.has(String(address(field)))]),
      unfolded: [...document.querySelectorAll("details[open]")].map(address),
      cards: document.getElementById("answers-cards")?.children.length || 0,
      scrolled: [...document.querySelectorAll(".scroll, .content")].filter((node) => node.scrollTop || node.scrollLeft)
        .map((node) => [address(node), node.scrollTop, node.scrollLeft]),
      focus: focused && focused !== document.body ? [address(focused), focused.selectionStart, focused.selectionEnd] : null,
    };
  };

  const settle = (kept) => {
    const more = document.getElementById("answers-more"), cards = document.getElementById("answers-cards");
    while (cards && cards.children.length < kept.cards && !more.hidden) more.click();
    for (const place of kept.unfolded) { const node = at(place); if (node) node.open = true; }
    if (kept.focus) {
      const node = at(kept.focus[0]);
      node?.focus({ preventScroll: true });
      if (node?.type === "search" && kept.focus[1] !== null) node.setSelectionRange(kept.focus[1], kept.focus[2]);
    }
    for (const [place, top, left] of kept.scrolled) { const node = at(place); if (node) { node.scrollTop = top; node.scrollLeft = left; } }
    const anchor = kept.anchor && at(kept.anchor[0]);
    if (anchor) scrollBy({ top: anchor.getBoundingClientRect().top - kept.anchor[1], behavior: "instant" });
  };

  const restore = () => {
    const kept = JSON.parse(sessionStorage.getItem("live") || "null");
    sessionStorage.removeItem("live");
    if (!kept) return;
    history.scrollRestoration = "manual";
    isRestoring = true;
    for (const [place, value, wasTouched] of kept.fields) {
      const field = at(place);
      if (!field || (field.tagName === "SELECT" && ![...field.options].some((option) => option.value === value))) continue;
      if (wasTouched) touched.add(String(place));
      if (field.value === value) continue;
      field.value = value;
      field.dispatchEvent(new Event("input", { bubbles: true }));
    }
    isRestoring = false;
    settle(kept);
    addEventListener("load", () => settle(kept)); // a fragment in the address would be scrolled to
    setTimeout(() => settle(kept), 100); // lists of answers are drawn a moment after their filters change
  };

  let busy = 0;
  for (const kind of ["pointerdown", "keydown", "wheel", "scroll", "input"])
    addEventListener(kind, () => { busy = performance.now(); }, { passive: true, capture: true });
  addEventListener("input", (event) => { if (!isRestoring && event.target.name) touched.add(String(address(event.target))); });
  const pauses = () => performance.now() - busy > (document.activeElement?.tagName === "SELECT" ? 8000 : 1500)
    && (getSelection()?.isCollapsed ?? true);

  let asOf = new Date();
  const say = (text, isTrouble = false) => {
    if (status.textContent !== text) status.textContent = text;
    status.classList.toggle("trouble", isTrouble);
  };
  const ask = async () => {
    let state;
    try {
      const reply = await fetch("/state", { cache: "no-store" });
      if (!reply.ok) throw new Error(reply.status);
      state = await reply.json();
    } catch {
      say(`No answer from online-dpo view. The page is as of ${asOf.toLocaleTimeString()}, and goes on by itself when the command runs again.`, true);
      return;
    }
    asOf = new Date();
    progress.textContent = state.progress;
    if (state.page === mine) { say("Live: the page renews itself when a round is finished."); return; }
    if (!pauses()) { say("There is news: the page renews itself as soon as you pause and no text is selected."); return; }
    say("The page renews itself.");
    sessionStorage.setItem("live", JSON.stringify(keep()));
    location.reload();
  };
  const loop = async () => {
    if (!document.hidden) await ask();
    setTimeout(loop, 2000);
  };
  document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
  restore();
  loop();
})();
