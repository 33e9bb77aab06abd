// The administrator's page: shows what the store tells, and asks before it changes anything for good.
import { get, post } from "./net.js";

const REFRESH_MS = 5000;
const at = (id) => document.getElementById(id);
const NONE = "–"; // where there is no figure
let seen = ""; // what was shown last; the same is not shown again, so that nothing moves under a pointer

function element(kind, values = {}, ...children) {
  const made = Object.assign(document.createElement(kind), values);
  made.append(...children);
  return made;
}

function say(words, kind = "") {
  at("status").textContent = words;
  at("status").className = `status ${kind}`;
}

async function refresh() {
  try {
    const overview = await get("/api/admin/overview");
    const text = JSON.stringify(overview);
    if (text !== seen) show(overview);
    seen = text;
    if (at("status").dataset.failed) {
      delete at("status").dataset.failed;
      say("");
    }
  } catch (failure) {
    at("status").dataset.failed = "yes";
    say(failure.message, "bad");
  }
}

function show({ progress, alpha, people, stuck, num_stuck: numStuck, you }) {
  at("state").textContent = progress.paused ? "paused" : "open";
  at("state").className = `badge ${progress.paused ? "bad" : "good"}`;
  at("pause").textContent = progress.paused ? "Go on" : "Pause";
  at("pause").dataset.path = progress.paused ? "/api/admin/unpause" : "/api/admin/pause";
  at("pause").disabled = false;
  Object.assign(at("bar"), { max: Math.max(progress.num_questions, 1), value: progress.num_settled });
  const agreement = alpha === null ? NONE : alpha.toFixed(2);
  at("figures").replaceChildren(
    figure("Questions settled", progress.num_settled, `of ${progress.num_questions}`),
    figure("Votes that count", progress.num_votes),
    figure("Votes still wanted", progress.num_missing),
    figure("Being looked at", progress.num_leased),
    figure("Active annotators", progress.num_people),
    figure("Krippendorff’s α", agreement),
    figure("Used by the run", progress.num_used),
  );
  at("nobody").hidden = people.length > 0;
  at("people-table").hidden = people.length === 0;
  at("people").replaceChildren(...people.map((person) => row(person, you)));
  showStuck(stuck, numStuck);
}

function figure(name, value, unit = "") {
  const shown = element("dd", {}, String(value));
  if (unit) shown.append(" ", element("small", { textContent: unit }));
  return element("div", {}, element("dt", { textContent: name }), shown);
}

function row(person, you) {
  const isPerson = person.role === "annotator";
  const status = isPerson || person.status !== "active" ? person.status : person.role;
  const kind = { active: "good", excluded: "bad" }[status] ?? "";
  const cells = [
    ["Name", element("div", {}, element("span", { className: "name", textContent: person.name }), element("small", { textContent: person.annotator }))],
    ["Status", element("div", {}, element("span", { className: `badge ${kind}`, textContent: status }), reason(person))],
    ["Votes", isPerson ? votes(person) : "", "number"],
    ["Seconds", person.median_seconds === null ? NONE : person.median_seconds.toFixed(1), "number"],
    ["Gold right", share(person.gold), "number"],
    ["Consistent", share(person.repeats), "number"],
    ["First shown", share(person.shown_first, 0.5), "number"],
    ["Last vote", person.last_at === null ? NONE : ago(person.last_at)],
    ["Change", person.annotator === you ? element("span", { className: "quiet", textContent: "you" }) : actions(person)],
  ];
  const shown = isPerson ? cells : cells.map((cell) => (["Name", "Status", "Change"].includes(cell[0]) ? cell : [cell[0], ""]));
  return element("tr", {}, ...shown.map(([label, content, className = ""]) => {
    const cell = element("td", { className }, ...(content === "" ? [] : [content]));
    cell.dataset.label = label;
    cell.classList.toggle("none", content === NONE);
    return cell;
  }));
}

const reason = (person) => (person.reason ? element("small", { textContent: person.reason }) : "");

function votes(person) {
  if (!person.num_votes) return "0";
  const parts = [`${person.num_counted} count`];
  if (person.num_skipped) parts.push(`${person.num_skipped} skipped`);
  if (person.num_too_fast) parts.push(`${person.num_too_fast} too fast`);
  return element("div", {}, String(person.num_votes), element("small", { textContent: parts.join(", ") }));
}

/** A share with what it is out of; marked where its interval does not hold `expected`. */
function share(found, expected) {
  if (found === null) return NONE;
  const isOdd = expected !== undefined && (found.low > expected || found.high < expected);
  const percent = element("span", { textContent: `${Math.round(found.share * 100)} %${isOdd ? " !" : ""}`, className: isOdd ? "mark" : "" });
  return element("div", { title: `95 % interval ${Math.round(found.low * 100)} to ${Math.round(found.high * 100)} %` },
    percent, element("small", { textContent: `of ${found.count}` }));
}

function ago(at_s) {
  const minutes = Math.floor((Date.now() / 1000 - at_s) / 60);
  if (minutes < 1) return "just now";
  if (minutes < 90) return `${minutes} min ago`;
  return minutes < 2880 ? `${Math.round(minutes / 60)} h ago` : `${Math.round(minutes / 1440)} days ago`;
}

function actions(person) {
  const button = (words, act) => {
    const made = element("button", { type: "button", textContent: words });
    made.setAttribute("aria-label", `${words}: ${person.name}`);
    made.addEventListener("click", act);
    return made;
  };
  const whom = { annotator: person.annotator };
  const made = [];
  if (person.role === "annotator" && person.status === "active") {
    made.push(button("Exclude", () => ask(`Exclude ${person.name}?`,
      "Votes that the run has not used yet stop counting, and others are asked instead. You can take it back.", "Exclude",
      { path: "/api/admin/exclude", values: whom, withReason: true })));
  }
  if (person.status === "excluded") {
    made.push(button("Reinstate", () => change("/api/admin/reinstate", whom, `${person.name} takes part again.`)));
  }
  made.push(button("New link", () => ask(`A new link for ${person.name}?`,
    "Older links and the sessions of this person end.", "Make a link", { path: "/api/admin/invite-again", values: { ...whom, days: days() } })));
  if (person.status !== "revoked") {
    made.push(button("Revoke", () => ask(`Revoke the access of ${person.name}?`,
      "Links and sessions end at once. The votes stay. A new link gives access again.", "Revoke", { path: "/api/admin/revoke", values: whom })));
  }
  return element("div", { className: "row" }, ...made);
}

function showStuck(stuck, numStuck) {
  at("stuck-section").hidden = numStuck === 0;
  at("stuck").replaceChildren(...stuck.map((question) => {
    const accept = element("button", { type: "button", textContent: "Accept its votes" });
    accept.addEventListener("click", () => close([question.question_id]));
    const words = element("div", { className: "prompt", dir: "auto", textContent: question.prompt });
    return element("li", {}, element("div", {}, words, element("small", { className: "quiet", textContent: question.reason })), accept);
  }));
  at("stuck-more").textContent = numStuck > stuck.length ? `${numStuck - stuck.length} more are not shown.` : "";
  at("close-all").onclick = () => ask(`Accept the votes of ${stuck.length} questions?`,
    "They are asked no more. This cannot be taken back.", "Accept", { path: "/api/admin/close", values: { question_ids: stuck.map((q) => q.question_id) } });
}

const days = () => Number(at("invite-days").value) || 7;
const close = (ids) => ask("Accept the votes of this question?", "It is asked no more. This cannot be taken back.", "Accept",
  { path: "/api/admin/close", values: { question_ids: ids } });

function ask(title, words, yes, { path, values, withReason = false }) {
  at("ask-title").textContent = title;
  at("ask-text").textContent = words;
  at("ask-yes").textContent = yes;
  at("ask-label").hidden = !withReason;
  at("ask-reason").required = withReason;
  at("ask-reason").value = "";
  at("ask-dialog").returnValue = "no";
  at("ask-dialog").onclose = () => {
    if (at("ask-dialog").returnValue !== "yes") return;
    change(path, withReason ? { ...values, reason: at("ask-reason").value.trim() } : values, "Done.");
  };
  at("ask-dialog").showModal();
}

async function change(path, values, done) {
  try {
    const reply = await post(path, values);
    say(done, "good");
    if (reply.path) showLink(reply);
  } catch (failure) {
    say(failure.message, "bad");
  }
  await refresh();
}

function showLink({ path, name, expires_at: until }) {
  at("link-title").textContent = `The link of ${name}`;
  at("link").value = location.origin + path;
  at("link-until").textContent = `Valid until ${new Date(until * 1000).toLocaleString()}.`;
  at("copy").textContent = "Copy";
  at("link-dialog").showModal();
  at("link").select();
}

at("link-dialog").addEventListener("close", () => { at("link").value = ""; });
at("copy").addEventListener("click", async () => {
  at("link").select();
  // The clipboard of the newer kind is for https alone.
  const copied = navigator.clipboard ? await navigator.clipboard.writeText(at("link").value).then(() => true, () => false) : document.execCommand("copy");
  at("copy").textContent = copied ? "Copied" : "Press Ctrl-C";
});
at("invite").addEventListener("submit", (event) => {
  event.preventDefault();
  change("/api/admin/invite", { name: at("invite-name").value, role: at("invite-role").value, days: days() }, "Invited.");
  at("invite-name").value = "";
});
at("pause").addEventListener("click", () => change(at("pause").dataset.path, {}, ""));
at("leave").addEventListener("click", async () => {
  const reply = await post("/api/leave").catch(() => ({ next: "/join" }));
  location.replace(reply.next);
});
setInterval(() => { if (!document.hidden) refresh(); }, REFRESH_MS);
refresh();
