"use strict";
// Plays recorded trajectories. Text goes in as text, never as markup.
const groups = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const slider = element("step");
const WRITE = 0, HIDE = 1;
let players = [], step = 0, timer = null;

function node(tag, name, content) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (content !== undefined) made.textContent = content;
  return made;
}

function shade(probability) {
  const bounds = [0.3, 0.5, 0.7, 0.9];
  return "p" + bounds.filter((bound) => probability > bound).length;
}

// The canvas after the first `count` frames: per position null or [text, probability, step it was written in].
function stateAfter(sample, count) {
  const canvas = new Array(sample.length).fill(null);
  for (let at = 0; at < Math.min(count, sample.frames.length); at++) {
    for (const [position, kind, shown, probability] of sample.frames[at]) {
      canvas[position] = kind === HIDE ? null : [shown, kind === WRITE ? probability : null, at];
    }
  }
  return canvas;
}

function facts(sample) {
  const header = node("header");
  header.append(node("b", "", "sample " + sample.sample));
  header.append(node("span", "", (sample.frames.length - 1) + " steps, " + sample.forwards + " forwards"));
  header.append(node("span", "", sample.end + " tokens"));
  for (const [name, value] of Object.entries(sample.rewards)) {
    header.append(node("span", "", name + " " + (value === null ? "-" : value)));
  }
  return header;
}

function makePlayer(sample) {
  const card = node("div", "player");
  const canvas = node("div", "canvas");
  const cells = Array.from({ length: sample.length }, () => canvas.appendChild(node("span", "mask", "\u2591")));
  card.append(facts(sample), canvas);
  let bars = [];
  if (sample.stepRewards) {
    const strip = card.appendChild(node("div", "strip"));
    const top = Math.max(1e-9, ...sample.stepRewards.map((value) => Math.abs(value || 0)));
    bars = sample.stepRewards.map((value) => {
      const bar = strip.appendChild(node("i"));
      bar.style.height = Math.round((34 * Math.abs(value || 0)) / top) + "px";
      bar.title = String(value);
      return bar;
    });
  }
  element("samples").append(card);
  return { sample, cells, bars };
}

function drawCell(cell, entry, changed, sample, position) {
  if (entry === null) {
    cell.textContent = "\u2591";
    cell.className = changed === HIDE ? "gone" : "mask";
    cell.title = "position " + position + ": masked";
    return;
  }
  const [shown, probability, when] = entry;
  cell.textContent = shown === "" ? "\u00b7" : shown;
  cell.className = probability === null ? "fill" : shade(probability);
  cell.title = "position " + position + ", step " + when + (probability === null ? "" : ", p = " + probability);
  if (changed !== undefined) cell.classList.add("now");
  if (position >= sample.end) cell.classList.add("after");
}

function draw() {
  for (const { sample, cells, bars } of players) {
    const canvas = stateAfter(sample, step);
    const last = step > 0 && step <= sample.frames.length ? sample.frames[step - 1] : [];
    const changed = new Map(last.map((change) => [change[0], change[1]]));
    cells.forEach((cell, position) => drawCell(cell, canvas[position], changed.get(position), sample, position));
    bars.forEach((bar, at) => bar.classList.toggle("now", at === step - 1));
  }
  slider.value = String(step);
  const most = Number(slider.max);
  const blocks = players.length ? players[0].sample.blocks : [];
  const block = blocks[Math.min(Math.max(step - 1, 0), blocks.length - 1)];
  element("where").textContent = "after step " + step + " of " + most + (block === undefined ? "" : ", block " + block);
}

function show(index) {
  const group = groups[index];
  element("prompt").textContent = group.prompt;
  element("samples").replaceChildren();
  players = group.samples.map(makePlayer);
  slider.max = String(Math.max(0, ...group.samples.map((sample) => sample.frames.length)));
  step = 0;
  draw();
}

function move(by) {
  step = Math.min(Number(slider.max), Math.max(0, step + by));
  draw();
}

function play(on) {
  if (timer !== null) clearInterval(timer);
  timer = null;
  element("play").textContent = on ? "pause" : "play";
  if (!on) return;
  if (step >= Number(slider.max)) step = 0;
  timer = setInterval(() => (step >= Number(slider.max) ? play(false) : move(1)), Number(element("speed").value));
}

groups.forEach((group, index) => {
  const option = element("group").appendChild(node("option", "", "uid " + group.uid + ": " + group.prompt.slice(0, 60)));
  option.value = String(index);
});
element("group").addEventListener("change", (event) => { play(false); show(Number(event.target.value)); });
element("play").addEventListener("click", () => play(timer === null));
element("back").addEventListener("click", () => { play(false); move(-1); });
element("forth").addEventListener("click", () => { play(false); move(1); });
element("speed").addEventListener("change", () => play(timer !== null));
slider.addEventListener("input", () => { play(false); step = Number(slider.value); draw(); });
document.addEventListener("keydown", (event) => {
  if (event.target.tagName === "SELECT") return;
  if (event.key === "ArrowLeft") { event.preventDefault(); play(false); move(-1); }
  if (event.key === "ArrowRight") { event.preventDefault(); play(false); move(1); }
  if (event.key === " ") { event.preventDefault(); play(timer === null); }
});
if (groups.length) show(0);
