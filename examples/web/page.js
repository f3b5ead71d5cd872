// Draws, asks all sub-networks that are there, and shows what they say. `?file=` names another file.

import { digitOf, drawStrokes, SIDE } from "./digit.js";
import { Network } from "./network.js";

const PEN = 20;
const CLASSES = 10;

const at = (id) => document.getElementById(id);
const paper = at("paper").getContext("2d");
const seen = at("seen").getContext("2d");
const number = (value) => value.toLocaleString("en");

let network = null;
let views = []; // of sub-networks, the smallest first: {subnetwork, begin, color, row, cells, part, answer}
let chosen = 0;
let strokes = [];

// ---- what it shows --------------------------------------------------------------------------------
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function styled(made, style) {
  for (const [name, value] of Object.entries(style)) made.style.setProperty(name, value);
  return made;
}

function showNetwork() {
  const count = network.bySize.length;
  views = network.bySize.map((subnetwork, i) => {
    const hue = 190 + (130 * i) / Math.max(1, count - 1);
    const color = `light-dark(oklch(0.55 0.15 ${hue}), oklch(0.75 0.12 ${hue}))`;
    return { subnetwork, begin: i === 0 ? 0 : network.bySize[i - 1].fileBytes, color, answer: null };
  });
  views.forEach(addRow);
  const whole = element("div", { className: "whole" });
  at("strip").append(whole, ...views.map((view) => addToStrip(view, whole)));
  at("slider").max = count - 1;
  at("slider").disabled = false;
  choose(0);
}

function addRow(view, i) {
  const cell = (className, textContent = "–") => element("td", { className, textContent });
  view.cells = {
    result: cell("result"),
    confidence: cell("confidence"),
    latency: cell("latency"),
    bytes: cell("bytes", number(view.subnetwork.fileBytes)),
    here: cell("here"),
  };
  const name = element("th", { scope: "row", textContent: view.subnetwork.name });
  view.row = element("tr", { onclick: () => choose(i) }, name, ...Object.values(view.cells));
  view.row.dataset.name = view.subnetwork.name;
  at("rows").append(styled(view.row, { "--own": view.color }));
}

const percent = (bytes) => `${(100 * bytes) / network.size}%`;

// Its part of the whole, of which as much as is there gets its color; and a bar of all that it needs.
function addToStrip(view, whole) {
  const { fileBytes, name } = view.subnetwork;
  const place = { "--own": view.color, left: percent(view.begin) };
  view.part = styled(element("span", { className: "here" }), { ...place, width: 0 });
  whole.append(styled(element("span"), { ...place, width: percent(fileBytes - view.begin) }), view.part);
  const isLong = fileBytes > network.size / 2;
  const label = element("span", { className: isLong ? "inside" : "", textContent: `${name} ${number(fileBytes)}` });
  const bar = styled(element("i"), { "--own": view.color, width: percent(fileBytes) });
  return element("div", { className: "needs" }, bar, styled(label, { left: isLong ? 0 : percent(fileBytes) }));
}

function showArrival() {
  at("arrived").textContent =
    `${number(network.bytes)} of ${number(network.size)} bytes have arrived, and lie once in the ` +
    `${number(network.memoryBytes)} bytes of WebAssembly's memory.`;
  for (const view of views) {
    const { fileBytes } = view.subnetwork;
    const here = Math.min(network.bytes, fileBytes);
    view.part.style.width = percent(Math.max(0, here - view.begin));
    view.row.classList.toggle("there", network.isThere(view.subnetwork));
    view.cells.here.textContent = here === fileBytes ? "all" : `${Math.floor((100 * here) / fileBytes)} %`;
  }
}

function showAnswers() {
  for (const { cells, answer } of views) {
    cells.result.textContent = answer ? answer.digit : "–";
    cells.confidence.textContent = answer ? `${(100 * answer.shares[answer.digit]).toFixed(1)} %` : "–";
  }
  const answer = views[chosen]?.answer;
  at("answer").textContent = answer ? answer.digit : "–";
  [...at("classes").children].forEach((item, digit) => {
    const share = answer ? answer.shares[digit] : 0;
    item.classList.toggle("most", answer?.digit === digit);
    item.title = `${digit}: ${(100 * share).toFixed(1)} %`;
    item.querySelector("i").style.height = `${100 * share}%`;
  });
}

function choose(i) {
  chosen = i;
  const { name } = views[i].subnetwork;
  views.forEach(({ row }, j) => row.classList.toggle("chosen", i === j));
  at("slider").value = i;
  at("slider").setAttribute("aria-valuetext", name);
  at("chosen").textContent = name;
  document.querySelector(".answer").style.setProperty("--own", views[i].color);
  showAnswers();
}

function showError(error) {
  at("message").textContent = error.message;
  at("message").hidden = false;
  document.body.dataset.state = "error";
}

// ---- what they say --------------------------------------------------------------------------------
function softmax(logits) {
  const most = Math.max(...logits);
  const powers = [...logits].map((each) => Math.exp(each - most));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((each) => each / sum);
}

function ask() {
  const digit = strokes.length > 0 ? digitOf(strokes) : null;
  const pixels = seen.createImageData(SIDE, SIDE);
  digit?.forEach((ink, i) => pixels.data.fill(255 * ink, 4 * i, 4 * i + 3));
  pixels.data.forEach((_, i) => i % 4 === 3 && (pixels.data[i] = 255));
  seen.putImageData(pixels, 0, 0);
  for (const view of views) {
    view.answer = null;
    if (digit === null || !network.isThere(view.subnetwork)) continue;
    const shares = softmax(network.run(view.subnetwork, digit));
    view.answer = { digit: shares.indexOf(Math.max(...shares)), shares };
  }
  showAnswers();
}

// While nobody draws, one after the other.
let measurements = 0;
async function measure() {
  const own = ++measurements;
  for (const { subnetwork, cells } of views) {
    await new Promise((resolve) => setTimeout(resolve, 100));
    if (own !== measurements) return;
    if (network.isThere(subnetwork)) cells.latency.textContent = `${network.time(subnetwork).toFixed(1)} µs`;
  }
}

// ---- drawing --------------------------------------------------------------------------------------
let isAsked = false;
function drawn() {
  paper.clearRect(0, 0, 280, 280);
  paper.strokeStyle = getComputedStyle(at("paper")).color;
  drawStrokes(paper, strokes, PEN);
  document.body.classList.toggle("drawn", strokes.length > 0);
  if (isAsked) return;
  isAsked = true; // once a frame
  requestAnimationFrame(() => {
    isAsked = false;
    ask();
  });
}

at("paper").addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button !== 0) return;
  event.target.setPointerCapture(event.pointerId);
  ++measurements;
  strokes.push([]);
  addPoints(event);
});
at("paper").addEventListener("pointermove", (event) => {
  if (event.target.hasPointerCapture(event.pointerId)) addPoints(event);
});
at("paper").addEventListener("lostpointercapture", measure);

function addPoints(event) {
  const box = event.target.getBoundingClientRect();
  const moves = event.getCoalescedEvents?.() ?? [];
  for (const { clientX, clientY } of moves.length > 0 ? moves : [event]) {
    strokes.at(-1).push([((clientX - box.left) * 280) / box.width, ((clientY - box.top) * 280) / box.height]);
  }
  drawn();
}

at("clear").addEventListener("click", () => {
  strokes = [];
  drawn();
});
at("slider").addEventListener("input", (event) => choose(Number(event.target.value)));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawn);
for (let digit = 0; digit < CLASSES; ++digit) {
  at("classes").append(element("li", {}, element("span", { className: "bar" }, element("i")), `${digit}`));
}

// ---- the file -------------------------------------------------------------------------------------
try {
  network = await Network.open(new URLSearchParams(location.search).get("file") ?? "network.nsnrt");
  if (network.subnetworks.some(({ inputs, outputs }) => inputs !== SIDE * SIDE || outputs !== CLASSES)) {
    throw new Error(`This page is for networks of ${SIDE * SIDE} inputs and ${CLASSES} outputs; these are others.`);
  }
  showNetwork();
  for (const { subnetwork } of views) {
    await network.load(subnetwork, showArrival);
    showArrival();
    ask();
    measure();
  }
  document.body.dataset.state = "ready";
} catch (error) {
  showError(error);
}
