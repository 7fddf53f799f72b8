// The page: digits come, both copies answer, one of them adapts, and what they did is shown.

import { Board, paint } from "./board.js";
import { Curve } from "./curve.js";
import { Rows } from "./rows.js";
import { Runner, argmax } from "./runner.js";

const STRETCH = 160; // digits under one corruption, where all come in turn
const [FIRST, STRIDE] = [3, 7]; // through the fifteen of them, so that each is unlike the one before
const PACE = 40; // digits a second
const TIMES = 30; // steps that the time of one is the mean of
const SHOWN = 16; // digits that are kept in sight

const $ = (id) => document.getElementById(id);
const form = $("controls");
let rows, trained, adapting, curve, board;
let seen = 0;
let times = [];
let timer = null;

/** One thing after the other: a step must be over before the next one reads its state. */
let line = Promise.resolve();
const inTurn = (work) => (line = line.then(work).catch(fault));

function fault(error) {
  pause();
  $("fault").textContent = `This does not work here: ${error.message}`;
  $("fault").hidden = false;
  document.body.dataset.state = "fault";
}

/** The next digits, and what they are called. */
function next() {
  const [chosen, severity, count] = [form.kind.value, Number(form.severity.value), Number(form.batch.value)];
  const turn = FIRST + STRIDE * Math.floor(seen / STRETCH);
  const kind = chosen === "all" ? turn % rows.kinds.length : Number(chosen);
  const digits = Array.from({ length: count }, (_, i) => rows.at(kind, severity, seen + i));
  return { digits, name: severity ? `${rows.kinds[kind]} ${severity}` : "clean" };
}

async function step() {
  const { digits, name } = next();
  const x = digits.map((digit) => digit.x);
  const before = (await trained.predict(x)).map(argmax);
  const start = performance.now();
  const after = (await adapting.adapt(x)).map(argmax);
  times = [...times, performance.now() - start].slice(-TIMES);
  seen += digits.length;
  curve.mark(name);
  digits.forEach(({ y }, i) => curve.add({ trained: before[i] === y, adapting: after[i] === y }));
  $("now").textContent = name;
  digits.forEach((digit, i) => show(digit, before[i], after[i]));
}

/** One digit and both answers, the newest first. */
function show({ x, y }, before, after) {
  const figure = $("digits").children.length < SHOWN ? $("figure").content.firstElementChild.cloneNode(true) : $("digits").lastChild;
  paint(figure.querySelector("canvas"), x, rows.width, rows.height);
  for (const [copy, code] of [["trained", before], ["adapting", after]]) {
    const answer = figure.querySelector(`.${copy}`);
    answer.textContent = className(code);
    answer.classList.toggle("wrong", code !== y);
  }
  $("digits").prepend(figure);
}

const className = (code) => adapting.about.stream.classes?.[code] ?? code;

/** Figures and curves as things stand. */
function tell() {
  for (const copy of ["trained", "adapting"]) {
    $(copy).textContent = seen ? `${Math.round(100 * curve.accuracy(copy))} %` : "–";
  }
  $("seen-count").textContent = seen;
  $("steps").textContent = adapting.counts.steps;
  $("rollbacks").textContent = adapting.counts.rollbacks;
  $("time").textContent = times.length ? `${(times.reduce((a, b) => a + b) / times.length).toFixed(1)} ms` : "–";
  $("severity-said").textContent = form.severity.value === "0" ? "0, clean" : form.severity.value;
  curve.draw();
}

/** What both make of the drawing. */
async function judge() {
  const row = board.row();
  paint($("seen"), row, rows.width, rows.height);
  const drawn = row.some((v) => v > 0);
  $("teach").disabled = !drawn;
  const [before, after] = [(await trained.predict([row]))[0], (await adapting.predict([row]))[0]];
  const best = argmax(after);
  Array.from($("bars").rows).forEach((line, code) => {
    line.classList.toggle("best", drawn && code === best);
    const [one, other] = line.querySelectorAll("i");
    one.style.width = `${drawn ? 100 * before[code] : 0}%`;
    other.style.width = `${drawn ? 100 * after[code] : 0}%`;
  });
}

function play() {
  $("play").textContent = "Pause";
  const due = performance.now() + (1000 * Number(form.batch.value)) / PACE;
  timer = setTimeout(() => inTurn(async () => {
    if (timer === null) return;
    await step();
    tell();
    timer = setTimeout(play, Math.max(0, due - performance.now()));
  }));
}

function pause() {
  clearTimeout(timer);
  timer = null;
  $("play").textContent = "Start";
}

function begin() {
  adapting.reset();
  seen = 0;
  times = [];
  $("digits").replaceChildren();
  $("now").textContent = "none yet";
  curve.clear();
  tell();
}

/** What the bundle says of itself, in a sentence. */
function introduce({ about }) {
  const kilobytes = Math.round(Object.values(about.files).reduce((sum, { bytes }) => sum + bytes, 0) / 1024);
  const numbers = Object.values(about.state).reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
  return `The bundle: method ${about.learner}, ${kilobytes} kB in all, ${numbers} numbers that change from step to step, ` +
    `ONNX opset ${about.made.opset}. ONNX Runtime Web runs it on one thread; Python runs the same files with run.py.`;
}

async function open() {
  rows = await Rows.open("made");
  trained = await Runner.open("made/source");
  adapting = await Runner.open("made/bundle");
  curve = new Curve($("curve"));
  board = new Board($("board"), rows, () => inTurn(judge));
  rows.kinds.forEach((kind, code) => form.kind.add(new Option(kind, code)));
  for (let code = 0; code < 10; code++) {
    $("bars").insertRow().innerHTML = `<th>${className(code)}</th><td><i class="trained"></i><i class="adapting"></i></td>`;
  }
  const asked = new URLSearchParams(location.search); // ?steps=20&batch=16: so many steps at once, and the controls
  for (const [name, value] of asked) if (form.elements[name]) form.elements[name].value = value;
  for (let i = 0; i < Number(asked.get("steps")); i++) await step();
  $("about").textContent = introduce(adapting);
  $("play").onclick = () => (timer === null ? play() : pause());
  $("clear").onclick = () => inTurn(() => (board.clear(), judge()));
  $("teach").onclick = () => inTurn(async () => (await adapting.adapt([board.row()]), await judge(), tell()));
  $("rollback").onclick = () => inTurn(async () => (adapting.rollback(), await judge(), tell()));
  $("reset").onclick = () => inTurn(async () => (begin(), await judge()));
  form.oninput = tell;
  for (const id of ["play", "rollback", "reset"]) $(id).disabled = false;
  await judge();
  tell();
  document.body.dataset.state = "ready";
}

inTurn(open);
