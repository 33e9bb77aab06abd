// The page on which people answer: shows a question, sends the choice, says what is saved.
import * as drafts from "./drafts.js";
import * as lease from "./lease.js";
import { Failure, persist, post } from "./net.js";
import { nameOf, showTexts } from "./texts.js";

const AT_LEAST_MS = 300; // the second half of a double click is no answer to the next question
const LOOK_AGAIN_MS = 3000;
const KEYS = { 1: "left", 2: "right", t: "tie", b: "both_bad", s: "skip" };
const NOTICES = {
  paused: ["A short break", "Whoever runs this has paused it. This page goes on by itself."],
  empty: ["Nothing to compare yet", "There are no questions yet. This page looks again by itself."],
  waiting: ["Nothing for you at the moment", "Others are answering what is left. If they do not, it comes to you by itself."],
  done: ["Everything is answered. Thank you!", "If there are new questions, they come by themselves."],
  excluded: ["Your answers do not count any more", ""],
  out: ["You are signed out", ""],
};

const at = (id) => document.getElementById(id);
const choices = [...document.querySelectorAll("[data-choice]")];
let question = null; // on the page
let name = null; // of the question, for drafts
let shownAt = 0;
let busy = false;
let unsaved = false;
let last = null; // what was sent last
let later = null; // a timer

function say(words, kind = "") {
  at("status").textContent = words;
  at("status").className = `status ${kind}`;
}

function setBusy(value) {
  busy = value;
  for (const button of choices) button.disabled = busy || question === null;
  at("undo").disabled = at("notice-undo").disabled = busy || !canUndo();
}

const canUndo = () => Number(at("bar").dataset.done) > 0;

/** Show what the server says comes next. */
function show(reply) {
  clearTimeout(later);
  if (reply.outlook) showOutlook(reply.outlook);
  const isQuestion = reply.state === "question";
  reveal(isQuestion);
  if (isQuestion) showQuestion(reply.question);
  else showNotice(reply.state, reply.why);
  setBusy(false);
}

function reveal(isQuestion) {
  for (const id of ["question", "buttons", "minor"]) at(id).hidden = !isQuestion;
  at("notice").hidden = isQuestion;
}

function showQuestion(next) {
  const isSame = question?.assignment === next.assignment;
  question = next;
  if (!isSame) {
    name = nameOf(next);
    showTexts(next);
    drafts.restore(name);
    shownAt = performance.now();
    for (const element of document.querySelectorAll("#prompt, #left, #right")) element.scrollTop = 0;
    if (next.prompt.length > 1) at("prompt").scrollTop = at("prompt").scrollHeight; // what is answered is said last
    scrollTo(0, 0);
    at("prompt-title").focus({ preventScroll: true });
  }
  const isUndone = last?.name === name;
  for (const button of choices) button.setAttribute("aria-current", String(isUndone && button.dataset.choice === last.choice));
  if (isUndone) drafts.fill(last);
  lease.hold(next.assignment, lost);
}

function showNotice(state, why) {
  question = null;
  lease.letGo();
  const [title, words] = NOTICES[state];
  at("notice-title").textContent = title;
  at("notice-text").textContent = why ?? words;
  at("notice-undo").hidden = !canUndo() || !["waiting", "done", "paused"].includes(state);
  if (state !== "out") later = setTimeout(lookAgain, LOOK_AGAIN_MS);
}

function showOutlook({ done, left, minutes }) {
  const parts = [`${done} done`];
  if (left > 0) parts.push(`up to ${left} left`);
  if (left > 0 && minutes !== null) parts.push(minutes > 90 ? `about ${Math.ceil(minutes / 60)} h` : `about ${minutes} min`);
  at("outlook").textContent = parts.join(" · ");
  Object.assign(at("bar"), { max: Math.max(done + left, 1), value: done, hidden: false });
  at("bar").dataset.done = done;
}

/** Somebody who is waiting is given what comes; a page that nobody sees asks for nothing. */
async function lookAgain() {
  if (document.hidden || busy || question !== null) {
    later = setTimeout(lookAgain, LOOK_AGAIN_MS);
    return;
  }
  await next({ quietly: true });
}

async function next({ quietly = false } = {}) {
  setBusy(true);
  try {
    const reply = await persist("/api/next", {}, (failure) => say(`${failure.message} Trying again…`, "bad"));
    if (!quietly || reply.state === "question") say("");
    show(reply);
  } catch (failure) {
    stop(failure);
  }
}

async function choose(choice) {
  if (busy || question === null || performance.now() - shownAt < AT_LEAST_MS) return;
  setBusy(true);
  unsaved = true;
  const sent = { name, choice, ...drafts.read() };
  const ballot = { assignment: question.assignment, choice, comment: sent.comment, ratings: sent.ratings };
  say("Saving…");
  try {
    const reply = await persist("/api/vote", { ...ballot, seconds: lease.seconds() }, (failure) =>
      say(`Not saved yet: ${failure.message} Trying again…`, "bad"),
    );
    unsaved = false;
    if (reply.saved) {
      drafts.forget(sent.name);
      last = sent;
      say(...outcome(reply, choice));
    } else if (reply.lost) {
      keep(sent);
      say(`Not saved. ${reply.lost}`, "bad");
    } else say("");
    show(reply);
  } catch (failure) {
    unsaved = false;
    stop(failure, "Not saved. ");
  }
}

function outcome(reply, choice) {
  if (reply.earlier) return ["You had answered this question already; that answer stays. Undo takes it back.", "bad"];
  if (reply.too_fast) return ["Saved, but too fast to count. Please read both answers.", "bad"];
  return [choice === "skip" ? "Skipped." : "Saved.", "good"];
}

async function undo() {
  if (busy || !canUndo()) return;
  if (question) drafts.store(name);
  setBusy(true);
  try {
    const reply = await post("/api/undo");
    say("Taken back. Choose again.", "good");
    show(reply);
  } catch (failure) {
    // Sent twice it would take back two answers. Whether it arrived, the next question tells.
    if (failure.passes) await next();
    else stop(failure);
  }
}

/** The question of this page is over: it went to somebody else, or another tab has answered it. */
async function lost(reply) {
  if (busy) return;
  if (question) keep({ name, ...drafts.read() });
  question = null;
  if (reply.state) show(reply);
  else {
    await next();
    say(reply.lost);
  }
}

function keep({ name: over, comment }) {
  drafts.forget(over);
  if (!comment) return;
  at("kept-text").value = comment;
  at("kept").hidden = false;
}

function stop(failure, before = "") {
  if (!(failure instanceof Failure)) throw failure;
  if (failure.status === 401) {
    if (question) drafts.store(name);
    reveal(false);
    showNotice("out", `${failure.message} What you have typed is kept in this tab.`);
  } else {
    say(before + failure.message, "bad");
    setBusy(false);
  }
}

function isTyping(target) {
  return target instanceof Element && target.closest("textarea, input:not([type=radio]):not([type=checkbox]), select, [contenteditable], dialog") !== null;
}

addEventListener("keydown", (event) => {
  if (event.key === "Escape" && event.target.id === "comment") at("prompt-title").focus();
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || isTyping(event.target)) return;
  if (!at("shortcuts").checked || at("instructions").open) return;
  const key = event.key.toLowerCase();
  if (key in KEYS) choose(KEYS[key]);
  else if (key === "u") undo();
  else return;
  event.preventDefault();
});
for (const button of choices) button.addEventListener("click", () => choose(button.dataset.choice));
at("undo").addEventListener("click", undo);
at("notice-undo").addEventListener("click", undo);
at("help").addEventListener("click", () => at("instructions").showModal());
at("kept-close").addEventListener("click", () => { at("kept").hidden = true; });
at("shortcuts").checked = localStorage.getItem("shortcuts") !== "off";
at("shortcuts").addEventListener("change", () => localStorage.setItem("shortcuts", at("shortcuts").checked ? "on" : "off"));
at("leave").addEventListener("click", async () => {
  const reply = await post("/api/leave").catch(() => ({ next: "/join" }));
  location.replace(reply.next);
});
drafts.watch(() => question && drafts.store(name));
addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });
// A page that the browser had put aside has given its question back.
addEventListener("pageshow", (event) => { if (event.persisted) next(); });
next();
