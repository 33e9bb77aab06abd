// The same held-out prompts under two policies, side by side.
(() => {
  const form = document.getElementById("held-out-controls");
  if (!form || !DATA.sets.length) return;
  const fields = form.elements, cards = document.getElementById("held-out-cards");
  const count = document.getElementById("held-out-count");
  const policy = (version) => (version === 0 ? "policy 0 (initial)" : `policy ${version}`);
  const chosen = () => DATA.sets[Number(fields.set.value)];

  fill(fields.set, DATA.sets.map((found, i) => [i, `${found.set} (${found.num_prompts} prompts)`]));
  const refill = () => {
    const set = chosen(), versions = set.versions.map((version) => [version, policy(version)]);
    fill(fields.before, versions, set.versions[0]);
    fill(fields.after, versions, set.versions[set.versions.length - 1]);
    fill(fields.order, [
      ["", "as in the set"],
      ...set.judges.flatMap((judge) => [[`+${judge}`, `${judge} rose most`], [`-${judge}`, `${judge} fell most`]]),
      ["shortest", "shortest after"], ["longest", "longest after"],
    ]);
  };

  const side = (row, version, kind) => {
    const answer = row.answers[version];
    const box = make("div", `side ${kind}`, make("h4", "", policy(Number(version))));
    if (!answer) return make("div", `side ${kind}`, make("h4", "", policy(Number(version))), make("p", "empty", "not sampled"));
    box.append(thought(answer), make("div", "content", answer.t.trim() ? answer.t : blank(answer.t)), cutNote(answer), make("ul", "facts",
      Object.entries(answer.s).map(([judge, score]) => fact(judge, figure(score))),
      fact("tokens", answer.n), answer.m === undefined ? null : fact("of the answer", answer.m), answer.f === "length" ? fact("", "cut at its limit") : null));
    return box;
  };

  const card = (row) => {
    const set = chosen();
    const every = make("details", "", make("summary", "", `All ${set.versions.length} policies`));
    every.addEventListener("toggle", () => {
      if (every.open && every.children.length === 1)
        every.append(make("div", "", set.versions.map((version) => side(row, version, "one"))));
    });
    return make("article", "card",
      make("header", "", make("h3", "", `Prompt ${row.id}`), change(row)),
      content(row.prompt, row.id),
      make("div", "sides", side(row, fields.before.value, "before"), side(row, fields.after.value, "after")),
      set.versions.length > 2 ? every : null);
  };

  const gain = (row, judge) => {
    const before = row.answers[fields.before.value], after = row.answers[fields.after.value];
    if (!before || !after || before.s[judge] === undefined || after.s[judge] === undefined) return null;
    return after.s[judge] - before.s[judge];
  };
  const change = (row) => chosen().judges.map((judge) => {
    const value = gain(row, judge);
    return value === null ? null : make("span", "", `${judge} ${value > 0 ? "+" : ""}${figure(value)}`);
  });
  const tokens = (row) => (row.answers[fields.after.value] || { n: 0 }).n;

  const show = () => {
    const set = chosen(), order = fields.order.value, wanted = fields.search.value.trim().toLocaleLowerCase();
    let rows = set.rows.filter((row) => !wanted || haystack(row).includes(wanted));
    const judge = order.slice(1), sign = order[0] === "-" ? 1 : -1;
    if (order === "shortest") rows = [...rows].sort((a, b) => tokens(a) - tokens(b));
    else if (order === "longest") rows = [...rows].sort((a, b) => tokens(b) - tokens(a));
    else if (order) rows = [...rows].sort((a, b) => sign * ((gain(a, judge) ?? 0) - (gain(b, judge) ?? 0)));
    count.textContent = `${rows.length} of the ${set.rows.length} prompts on this page; the set has ${set.num_prompts}`
      + (set.rows.length < set.num_prompts ? ", of which these were drawn by a hash of their ids." : ".");
    cards.replaceChildren(...rows.map(card));
    if (!rows.length) cards.append(make("p", "empty", "No prompt fits."));
  };
  const haystack = (row) => [row.id, plain(row.prompt), ...Object.values(row.answers).map((a) => a.t)].join("\n").toLocaleLowerCase();

  fields.set.addEventListener("input", refill);
  listen(form, show);
  refill();
  show();
})();
