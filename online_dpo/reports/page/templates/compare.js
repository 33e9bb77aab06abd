// The same held-out prompts under several runs, side by side.
(() => {
  const form = document.getElementById("compared-controls");
  if (!form || !DATA.compared.length) return;
  const PAGE = 10, SVG = "http://www.w3.org/2000/svg";
  const fields = form.elements, cards = document.getElementById("compared-cards");
  const count = document.getElementById("compared-count"), more = document.getElementById("compared-more");
  const chosen = () => DATA.compared[Number(fields.set.value)];
  let found = [], shown = 0;

  fill(fields.set, DATA.compared.map((set, i) => [i, `${set.set} (${set.num_prompts} common prompts)`]));
  const refill = () => fill(fields.order, [
    ["", "as drawn"],
    ...chosen().judges.map((judge) => [`~${judge}`, `${judge} differs most`]),
    ["shortest", "shortest answer"], ["longest", "longest answer"],
  ]);

  const swatch = (place) => {
    const svg = document.createElementNS(SVG, "svg");
    for (const [name, value] of Object.entries({ class: "swatch", width: 30, height: 12, viewBox: "0 0 30 12", "aria-hidden": "true" }))
      svg.setAttribute(name, value);
    for (const values of [{ class: `line line-${place}`, d: "M0,6H30" },
      { class: `mark fill-${place}`, d: DATA.marks[place], transform: "translate(15,6)" }]) {
      const path = document.createElementNS(SVG, "path");
      for (const [name, value] of Object.entries(values)) path.setAttribute(name, value);
      svg.append(path);
    }
    return svg;
  };

  const scores = (row, judge) => Object.values(row.answers).map((answer) => answer.s[judge]).filter((score) => score !== undefined);
  const spread = (row, judge) => { const given = scores(row, judge); return given.length < 2 ? -1 : Math.max(...given) - Math.min(...given); };
  const tokens = (row) => Object.values(row.answers).map((answer) => answer.n);

  const side = (row, place) => {
    const answer = row.answers[place], version = chosen().versions[place];
    const title = make("h4", "", swatch(place), make("span", "", DATA.labels[place]));
    if (!answer) return make("div", "side", title, make("p", "empty", version === undefined ? "The run has no such set." : "This prompt is not in the run's set."));
    return make("div", "side", title, thought(answer), make("div", "content", answer.t.trim() ? answer.t : blank(answer.t)), cutNote(answer),
      make("ul", "facts", Object.entries(answer.s).map(([judge, score]) => {
        const given = scores(row, judge), line = fact(judge, figure(score));
        if (given.length > 1 && score === Math.max(...given) && score > Math.min(...given)) line.classList.add("best");
        return line;
      }), fact("tokens", answer.n), answer.m === undefined ? null : fact("of the answer", answer.m), fact("policy", version), answer.f === "length" ? fact("", "cut at its limit") : null));
  };

  const card = (row) => make("article", "card", make("header", "", make("h3", "", `Prompt ${row.id}`)), content(row.prompt, row.id),
    make("div", "sides many", DATA.labels.map((_, place) => side(row, place))));

  const extend = () => {
    cards.append(...found.slice(shown, shown + PAGE).map(card));
    shown = Math.min(found.length, shown + PAGE);
    more.hidden = shown >= found.length;
    more.textContent = `Show ${Math.min(PAGE, found.length - shown)} more of ${found.length}`;
  };
  const haystack = (row) => [row.id, plain(row.prompt), ...Object.values(row.answers).map((answer) => answer.t)].join("\n").toLocaleLowerCase();
  const show = () => {
    const set = chosen(), order = fields.order.value, wanted = fields.search.value.trim().toLocaleLowerCase();
    found = set.rows.filter((row) => !wanted || haystack(row).includes(wanted));
    if (order === "shortest") found.sort((a, b) => Math.min(...tokens(a)) - Math.min(...tokens(b)));
    else if (order === "longest") found.sort((a, b) => Math.max(...tokens(b)) - Math.max(...tokens(a)));
    else if (order) found.sort((a, b) => spread(b, order.slice(1)) - spread(a, order.slice(1)));
    const with_set = Object.keys(set.versions).length;
    count.textContent = `${found.length} of the ${set.rows.length} prompts on this page. `
      + (set.num_all === set.num_prompts && with_set > 2 ? `All ${with_set} runs that have the set answered ${set.num_prompts} of its prompts`
        : with_set > 2 ? `At least two runs answered ${set.num_prompts} prompts of the set, all ${with_set} runs that have it ${set.num_all}`
        : `Both runs that have the set answered ${set.num_prompts} of its prompts`)
      + (set.rows.length < set.num_prompts ? "; those here were drawn by a hash." : ".");
    cards.replaceChildren();
    shown = 0;
    extend();
    if (!found.length) cards.append(make("p", "empty", "No prompt fits."));
  };

  more.addEventListener("click", () => {
    const before = shown;
    extend();
    const first = cards.children[before];
    if (first) { first.tabIndex = -1; first.focus({ preventScroll: true }); }
  });
  fields.set.addEventListener("input", refill);
  listen(form, show);
  refill();
  show();
})();
