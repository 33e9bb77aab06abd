// What is typed on a question, until it is sent: kept in this tab, also when the page is loaded again.

const KEY = "drafts";
const MOST = 20;
const comment = document.getElementById("comment");
const extras = document.getElementById("extras");
const fieldsets = [...document.querySelectorAll(".rating")];

export function read() {
  const ratings = {};
  for (const fieldset of fieldsets) {
    const chosen = fieldset.querySelector("input:checked");
    if (chosen) ratings[fieldset.dataset.criterion] = Number(chosen.value);
  }
  return { comment: comment.value, ratings };
}

export function fill({ comment: words, ratings }) {
  comment.value = words;
  for (const fieldset of fieldsets) {
    const value = ratings[fieldset.dataset.criterion];
    for (const input of fieldset.querySelectorAll("input")) input.checked = value !== undefined && Number(input.value) === value;
  }
  if (words || Object.keys(ratings).length) extras.open = true;
}

export function store(name) {
  const drafts = all();
  delete drafts[name];
  const { comment: words, ratings } = read();
  if (words || Object.keys(ratings).length) drafts[name] = { comment: words, ratings };
  save(drafts);
}

/** Put back what was typed on this question, or nothing. */
export function restore(name) {
  fill(all()[name] ?? { comment: "", ratings: {} });
}

export function forget(name) {
  const drafts = all();
  delete drafts[name];
  save(drafts);
}

/** Call `changed` whenever something is typed or rated. A rating that is chosen again is taken back. */
export function watch(changed) {
  comment.addEventListener("input", changed);
  for (const fieldset of fieldsets) {
    let before = null;
    fieldset.addEventListener("pointerdown", () => { before = fieldset.querySelector("input:checked"); });
    fieldset.addEventListener("click", (event) => {
      if (event.target.matches("input") && event.target === before) event.target.checked = false;
      if (event.target.matches("input")) before = null;
      changed();
    });
    fieldset.addEventListener("change", changed);
  }
}

function all() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY)) ?? {};
  } catch {
    return {};
  }
}

function save(drafts) {
  sessionStorage.setItem(KEY, JSON.stringify(Object.fromEntries(Object.entries(drafts).slice(-MOST))));
}
