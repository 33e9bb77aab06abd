"use strict";
// Everything that a model or a user wrote reaches the page through `textContent`, never as markup.

const DATA = JSON.parse(document.getElementById("data").textContent);

function make(tag, classes, ...content) {
  const node = document.createElement(tag);
  if (classes) node.className = classes;
  for (const part of content.flat()) {
    if (part === null || part === undefined || part === "") continue;
    node.append(part instanceof Node ? part : document.createTextNode(String(part)));
  }
  return node;
}

function figure(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  if (size >= 1e6) return value.toExponential(2);
  if (size < 5e-4) return "0";
  return value.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : 3);
}

function fill(select, options, chosen) {
  select.replaceChildren();
  for (const [value, name] of options) {
    const option = make("option", "", name);
    option.value = value;
    select.append(option);
  }
  if (options.some(([value]) => String(value) === String(chosen))) select.value = String(chosen);
}

function content(prompt, id) {
  if (prompt === null) return make("p", "content prompt", make("em", "", "The prompt's text is not in the run directory."));
  if (typeof prompt === "string") return make("div", "content prompt", prompt);
  return make("div", "content prompt", prompt.map(([role, text]) => [make("span", "role", role), make("div", "", text)]));
}

function words(text) {
  return text.match(/\s+|[^\s]+/gu) || [];
}

// The words that only one of two texts has, by their longest common subsequence. Long texts are shown as they are.
function difference(left, right) {
  const a = words(left), b = words(right);
  if (a.length * b.length > 400000) return [[[left, false]], [[right, false]]];
  const width = b.length + 1, table = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      table[i * width + j] = a[i] === b[j] ? table[(i + 1) * width + j + 1] + 1
        : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
  const one = [], two = [];
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) { one.push([a[i++], false]); two.push([b[j++], false]); }
    else if (j >= b.length || (i < a.length && table[(i + 1) * width + j] >= table[i * width + j + 1])) one.push([a[i++], true]);
    else two.push([b[j++], true]);
  }
  // Where little is alike, marks on almost everything would only be in the way.
  const alike = one.filter(([text, only]) => !only && text.trim()).length;
  if (alike * 3 < Math.max(a.length, b.length) / 2) return [[[left, false]], [[right, false]]];
  return [joined(one), joined(two)];
}

function joined(parts) {
  const found = [];
  for (const [text, only] of parts) {
    const last = found[found.length - 1];
    const marked = only && text.trim() !== "";
    if (last && (last[1] === marked || (text.trim() === "" && !marked))) last[0] += text;
    else found.push([text, marked]);
  }
  return found;
}

function marked(parts) {
  return parts.map(([text, only]) => (only ? make("mark", "", text) : text));
}

function fact(name, value) {
  return value === null || value === undefined ? null : make("li", "", name, " ", make("b", "", value));
}

function listen(form, change) {
  form.addEventListener("submit", (event) => event.preventDefault());
  let waiting = 0;
  form.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(change, 60); });
}

// The readout of a chart: the row of its table that is nearest to the pointer, or that the arrow keys chose.
for (const plot of document.querySelectorAll("svg.plot")) {
  const stops = plot.dataset.stops.split(" ").map(Number);
  const chart = plot.closest("figure");
  const rows = [...chart.querySelectorAll("tbody tr")];
  const names = [...chart.querySelectorAll("thead th")].map((cell) => cell.textContent);
  const readout = chart.querySelector("output"), cursor = plot.querySelector(".cursor");
  let at = -1;
  const show = (index) => {
    at = Math.max(0, Math.min(stops.length - 1, index));
    const cells = [...rows[at].children].map((cell) => cell.textContent);
    readout.textContent = cells.map((cell, i) => (cell ? `${names[i]} ${cell}`.trim() : "")).filter(Boolean).join(" · ");
    cursor.setAttribute("d", `M${stops[at]},${cursor.dataset.top}V${cursor.dataset.bottom}`);
  };
  const hide = () => { at = -1; readout.textContent = ""; cursor.setAttribute("d", ""); };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * plot.viewBox.baseVal.width;
    show(stops.reduce((best, stop, i) => (Math.abs(stop - x) < Math.abs(stops[best] - x) ? i : best), 0));
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("focus", () => { if (plot.matches(":focus-visible")) show(stops.length - 1); });
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { event.preventDefault(); show(at < 0 ? (step > 0 ? 0 : stops.length - 1) : at + step); }
    if (event.key === "Home") { event.preventDefault(); show(0); }
    if (event.key === "End") { event.preventDefault(); show(stops.length - 1); }
  });
}
