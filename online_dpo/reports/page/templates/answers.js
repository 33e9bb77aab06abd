function plain(prompt) {
  if (prompt === null) return "";
  return typeof prompt === "string" ? prompt : prompt.map(([, text]) => text).join("\n");
}

function blank(text) {
  return make("em", "", text ? "(only spaces)" : "(empty)");
}

function cutNote(answer) {
  return answer.x ? make("p", "facts", `${answer.x} more characters are in the run directory.`) : "";
}

// What a thinking model wrote before its answer, folded; it is no part of what judges saw.
function thought(answer) {
  if (answer.th === undefined && !answer.un) return "";
  const more = answer.ct ? `\n(${answer.ct} more characters are in the run directory)` : "";
  return make("details", "thought", make("summary", "", answer.un ? "A thought without an end" : "Thought"),
    make("div", "content", (answer.th || "") + more));
}

// The answers of each round: filters, orders, and a link to every prompt.
(() => {
  const form = document.getElementById("answers-controls");
  if (!form || !DATA.rounds.length) return;
  const PAGE = 20;
  const fields = form.elements, cards = document.getElementById("answers-cards");
  const count = document.getElementById("answers-count"), more = document.getElementById("answers-more");
  const every = DATA.rounds.flatMap((round) => round.cards.map((card) => ({ ...card, round: round.round + 1 })));
  const link = (card) => `#answer-${card.round}-${encodeURIComponent(card.id)}`;
  const spoken = (outcome) => outcome.replaceAll("_", " ");
  let found = [], shown = 0;

  fill(fields.round, [["all", "all rounds"], ...DATA.rounds.map((r) => [r.round + 1, `round ${r.round + 1}`])],
    DATA.rounds[DATA.rounds.length - 1].round + 1);
  fill(fields.order, [["", "as sampled"], ["margin", "largest margin"], ["surprise", "most surprising"],
    ["shortest", "shortest answer"], ["longest", "longest answer"], ["uncertain", "judges least sure"]]);
  const rounds = () => (fields.round.value === "all" ? DATA.rounds
    : DATA.rounds.filter((round) => String(round.round + 1) === fields.round.value));
  const outcomes = () => {
    const totals = new Map();
    for (const round of rounds())
      for (const [name, number] of Object.entries(round.outcomes)) totals.set(name, (totals.get(name) || 0) + number);
    const kept = fields.outcome.value;
    fill(fields.outcome, [["", "any"], ...[...totals].map(([name, number]) => [name, `${spoken(name)} (${number})`])], kept);
  };

  const margin = (card) => Math.max(...(card.p || []).map((pair) => pair.m ?? -Infinity), -Infinity);
  const surprise = (card) => Math.max(...(card.p || []).map((pair) => pair.su ?? -Infinity), -Infinity);
  const lengths = (card) => card.a.map((answer) => answer.n);
  const doubt = (card) => Math.min(...(card.p || []).map((pair) => Math.abs((pair.b ?? 1) - 0.5)), Infinity);
  const ORDERS = {
    margin: (a, b) => margin(b) - margin(a), surprise: (a, b) => surprise(b) - surprise(a),
    shortest: (a, b) => Math.min(...lengths(a)) - Math.min(...lengths(b)),
    longest: (a, b) => Math.max(...lengths(b)) - Math.max(...lengths(a)),
    uncertain: (a, b) => doubt(a) - doubt(b),
  };
  const haystack = (card) => [card.id, plain(card.prompt), ...card.a.flatMap((a) => [a.t, a.th || ""]), ...card.s.map((v) => v.y || ""),
    ...(card.w || []).map((v) => v.y)]
    .join("\n").toLocaleLowerCase();

  const score = (card, index) => {
    const given = card.s.find((v) => v.a === index && v.b === undefined && v.s !== undefined);
    return given ? given.s : null;
  };
  const facts = (card, answer, ratio) => make("ul", "facts",
    fact("score", score(card, answer.i) === null ? null : figure(score(card, answer.i))),
    ratio === undefined || ratio === null ? null : fact("log-ratio", figure(ratio)),
    answer.g === undefined ? null : fact("log-prob", figure(answer.g)),
    fact("tokens", answer.n), answer.m === undefined ? null : fact("of the answer", answer.m), answer.f === "length" ? fact("", "cut at its limit") : null,
    answer.w !== undefined ? fact("written by", answer.w)
      : answer.v === undefined ? fact("", "from the data set") : fact("policy", answer.v));
  const side = (card, answer, kind, title, text, ratio) => make("div", `side ${kind}`,
    make("h4", "", `${title}: answer ${answer.i}`), thought(answer), make("div", "content", answer.t.trim() ? text : blank(answer.t)),
    cutNote(answer), facts(card, answer, ratio));

  const pairOf = (card, pair) => {
    const chosen = card.a.find((a) => a.i === pair.c), rejected = card.a.find((a) => a.i === pair.r);
    if (!chosen || !rejected) return make("p", "empty", "This pair's answers are not on the page.");
    const [left, right] = difference(chosen.t, rejected.t);
    const facts = make("ul", "facts", fact("margin", figure(pair.m)), fact("probability", figure(pair.b)),
      pair.cr === null || pair.rr === null ? null : fact("difference of log-ratios", figure(pair.cr - pair.rr)),
      pair.su === null ? null : fact("surprise", `${figure(pair.su)} nats per token`),
      pair.w === 1 ? null : fact("weight", figure(pair.w)));
    return make("div", "", make("div", "sides", side(card, chosen, "chosen", "Chosen", marked(left), pair.cr),
      side(card, rejected, "rejected", "Rejected", marked(right), pair.rr)), facts);
  };

  const verdict = (v) => {
    const about = v.b === undefined ? `answer ${v.a}` : `answers ${v.a} and ${v.b}`;
    const said = v.s !== undefined ? `score ${figure(v.s)}`
      : v.p !== undefined ? (v.p === 0.5 ? "a tie" : `the ${v.p > 0.5 ? "first" : "second"} is better (probability that the first is: ${figure(v.p)})`)
      : v.k === "failed" ? "the call failed" : "no opinion";
    return make("li", "", make("b", "", v.j), ` on ${about}: ${said}`,
      v.u === undefined ? null : `, spread ${figure(v.u)}`, v.y ? make("div", "why", v.y) : null);
  };

  const vote = (v) => {
    const said = { first: `answer ${v.a} is better`, second: `answer ${v.b} is better`, tie: "a tie", both_bad: "both are bad", skip: "skipped" };
    return make("li", "", make("b", "", v.n), ` (${v.j}) on answers ${v.a} and ${v.b}: ${said[v.o] || v.o}, after ${figure(v.t)} s`,
      v.k === "counted" ? null : `, not counted (${v.k})`, v.y ? make("div", "why", v.y) : null);
  };

  const lineage = (card, answer) => {
    const pair = (card.p || []).find((p) => p.c === answer.i || p.r === answer.i);
    const label = (card.l || []).find((l) => l.i === answer.i);
    const adapter = (version) => (version === 0 ? "the initial policy"
      : `policy ${version} (${DATA.adapters[version] ? `adapter sha256 ${DATA.adapters[version].slice(0, 12)}` : "its adapter is missing"})`);
    const steps = answer.w !== undefined ? [`the writer ${answer.w} gave it for round ${card.round}, shard ${answer.h}`]
      : answer.v === undefined ? ["it is from the data set of preferences"]
      : [`${adapter(answer.v)} sampled it for round ${card.round}, shard ${answer.h}, sample ${answer.i}, seed ${answer.q}`];
    const judges = [...new Set(card.s.filter((v) => v.a === answer.i || v.b === answer.i).map((v) => v.j))];
    if (judges.length) steps.push(`judged by ${judges.join(" and ")}`);
    if (pair) steps.push(`${pair.c === answer.i ? "chosen" : "rejected"} in a pair, from which the learner made ${adapter(card.round)}`);
    else if (label) steps.push(`labelled ${label.d ? "desirable" : "undesirable"}, from which the learner made ${adapter(card.round)}`);
    else steps.push("not trained on");
    return make("li", "", make("b", "", `answer ${answer.i}`), `: ${steps.join("; ")}.`);
  };

  const folded = (title, children) => {
    const box = make("details", "", make("summary", "", title));
    box.addEventListener("toggle", () => { if (box.open && box.children.length === 1) box.append(make("div", "", children())); });
    return box;
  };

  const draw = (card) => {
    const paired = new Set((card.p || []).flatMap((pair) => [pair.c, pair.r]));
    const labelled = new Set((card.l || []).map((label) => label.i));
    const others = card.a.filter((answer) => !paired.has(answer.i) && !labelled.has(answer.i));
    const anchor = make("a", "", "Link to this");
    anchor.href = link(card);
    const article = make("article", "card",
      make("header", "", make("h3", "", `Prompt ${card.id}`), make("span", "", `round ${card.round}`),
        make("span", `chip ${/^(paired|labelled|from a data set)$/.test(card.o) ? "good" : "open"}`, spoken(card.o)), anchor),
      content(card.prompt, card.id),
      (card.p || []).map((pair) => pairOf(card, pair)),
      card.l ? make("div", "sides", card.l.map((label) => {
        const answer = card.a.find((a) => a.i === label.i);
        return answer ? side(card, answer, label.d ? "chosen" : "rejected", label.d ? "Desirable" : "Undesirable", answer.t, label.r) : null;
      })) : null,
      others.length && (paired.size || labelled.size)
        ? folded(`${others.length} other answer${others.length > 1 ? "s" : ""}` + (card.na > card.a.length ? ` of ${card.na} sampled` : ""),
          () => others.map((answer) => side(card, answer, "", "Not used", answer.t)))
        : others.length ? make("div", "sides", others.map((answer) => side(card, answer, "", "Not used", answer.t))) : null,
      card.s.length ? folded(`What the judge said (${card.s.length}${card.nv > card.s.length ? ` of ${card.nv}` : ""})`,
        () => make("ul", "said", card.s.map(verdict))) : null,
      card.w ? folded(`What people said (${card.w.length})`, () => make("ul", "said", card.w.map(vote))) : null,
      folded("Lineage", () => make("ul", "said", card.a.map((answer) => lineage(card, answer)))));
    article.id = link(card).slice(1);
    article.tabIndex = -1;
    return article;
  };

  const extend = (size) => {
    cards.append(...found.slice(shown, shown + size).map(draw));
    shown = Math.min(found.length, shown + size);
    more.hidden = shown >= found.length;
    more.textContent = `Show ${Math.min(PAGE, found.length - shown)} more of ${found.length}`;
  };
  const show = () => {
    const wanted = fields.search.value.trim().toLocaleLowerCase(), outcome = fields.outcome.value;
    const here = fields.round.value === "all" ? every : every.filter((card) => String(card.round) === fields.round.value);
    found = here.filter((card) => (!outcome || card.o === outcome) && (!wanted || haystack(card).includes(wanted)));
    if (ORDERS[fields.order.value]) found.sort(ORDERS[fields.order.value]);
    const total = (key) => rounds().reduce((sum, round) => sum + round[key], 0);
    const sampled = total("num_completions") ? ` and ${total("num_completions")} completions` : "";
    count.textContent = `${found.length} of the ${here.length} prompts on this page. `
      + (fields.round.value === "all" ? "All rounds have " : "The round has ")
      + `${total("num_prompts")} prompts${sampled}`
      + (here.length < total("num_prompts") ? "; those here are its extremes, some of every outcome, and others drawn by a hash of their ids." : ".");
    cards.replaceChildren();
    shown = 0;
    extend(PAGE);
    if (!found.length) cards.append(make("p", "empty", "No prompt of this page fits. Not all of a round's prompts are on it."));
  };

  // A link names a round and a prompt; whatever was filtered away comes back for it.
  const follow = () => {
    const match = /^#answer-(\d+)-(.*)$/s.exec(location.hash);
    if (!match) return;
    const wanted = every.find((card) => link(card) === location.hash);
    if (!wanted) {
      count.textContent = `The prompt of this link is not on this page, which shows a sample of round ${match[1]}.`;
      count.scrollIntoView();
      return;
    }
    fields.round.value = String(wanted.round);
    outcomes();
    fields.outcome.value = fields.order.value = fields.search.value = "";
    show();
    while (!document.getElementById(link(wanted).slice(1))) extend(PAGE);
    const article = document.getElementById(link(wanted).slice(1));
    article.classList.add("found");
    article.focus({ preventScroll: true });
    article.scrollIntoView();
  };

  more.addEventListener("click", () => {
    const before = shown;
    extend(PAGE);
    cards.children[before]?.focus({ preventScroll: true });
  });
  fields.round.addEventListener("input", outcomes);
  listen(form, show);
  addEventListener("hashchange", follow);
  outcomes();
  show();
  follow();
})();
