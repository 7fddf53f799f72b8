// Runs an edge bundle: answers rows and goes on adapting, with ONNX Runtime Web and nothing else. It is run.py of every
// bundle once more, without its command line: what a verb wrote counts only if all of it is finite, and where the answers
// of a window fall into far fewer classes than those of the state at export to the same rows, the last good state comes back.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";

ort.env.wasm.numThreads = 1; // more of them would need a page that is isolated from other origins

const FORMAT = 1;
const WEIGHTS = "weights.bin"; // those that several graphs share
const ARRAYS = {
  float64: Float64Array, float32: Float32Array, float16: Uint16Array, int64: BigInt64Array, int32: Int32Array,
  int8: Int8Array, uint8: Uint8Array, bool: Uint8Array,
};
const KINDS = {
  F64: "float64", F32: "float32", F16: "float16", I64: "int64", I32: "int32", I8: "int8", U8: "uint8", BOOL: "bool",
};

/** Whether all numbers are finite; numbers whose squares do not fit in 32 bits count as infinite. */
function finite({ type, data }) {
  return !["float32", "float64"].includes(type) || Math.fround(data.reduce((sum, v) => sum + v * v, 0)) < Infinity;
}

/** Place of the largest value. */
export const argmax = (values) => values.reduce((best, v, i) => (v > values[best] ? i : best), 0);

async function fetched(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address} is not there (${answer.status})`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (b) => b.toString(16).padStart(2, "0")).join("");
}

/** JSON text as Python writes it with sorted keys, its numbers and strings as they stand, without the outermost `seal`. */
function unsealed(text, seal) {
  const tokens = text.match(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g);
  let at = 0;
  const list = (close, item) => {
    const found = [];
    for (at++; tokens[at] !== close; tokens[at] === "," && at++) found.push(item());
    at++;
    return found;
  };
  const member = () => {
    const key = tokens[at];
    at += 2;
    return [key, value()];
  };
  const value = (without = null) => {
    if (tokens[at] === "[") return `[${list("]", () => value()).join(", ")}]`;
    if (tokens[at] !== "{") return tokens[at++];
    const members = list("}", member).filter(([key]) => JSON.parse(key) !== without);
    members.sort(([a], [b]) => (JSON.parse(a) < JSON.parse(b) ? -1 : 1));
    return `{${members.map((pair) => pair.join(": ")).join(", ")}}`;
  };
  return value(seal);
}

/** Tensors of a safetensors file by name. */
function tensors(body) {
  const view = new DataView(body.buffer, body.byteOffset);
  const data = 8 + Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(body.subarray(8, data)));
  delete header.__metadata__;
  return Object.fromEntries(Object.entries(header).map(([name, { dtype, shape, data_offsets: [start, stop] }]) => {
    const type = KINDS[dtype];
    return [name, new ort.Tensor(type, new ARRAYS[type](body.slice(data + start, data + stop).buffer), shape)];
  }));
}

/** bundle.json and the other files, if all are as they were written. */
async function read(folder) {
  const text = new TextDecoder().decode(await fetched(`${folder}/bundle.json`));
  let about;
  try {
    about = JSON.parse(text);
  } catch {
    throw new Error(`${folder} holds no edge bundle`);
  }
  if ((await sha256(new TextEncoder().encode(unsealed(text, "sha256")))) !== about.sha256) {
    throw new Error(`${folder}/bundle.json was altered`);
  }
  if (about.format !== FORMAT) throw new Error(`${folder}: a bundle of format ${about.format}, this page reads ${FORMAT}`);
  const files = {};
  for (const [name, promise] of Object.entries(about.files)) {
    files[name] = await fetched(`${folder}/${name}`);
    if ((await sha256(files[name])) !== promise.sha256) throw new Error(`${folder}/${name} was altered`);
  }
  return { about, files };
}

/** How many classes there are, as it were: exp of the entropy. */
function effective(counts) {
  const sum = counts.reduce((a, b) => a + b, 0);
  return Math.exp(-counts.reduce((h, c) => (c ? h + (c / sum) * Math.log(c / sum) : h), 0));
}

/** Tells whether the answers fall into far fewer classes than those of the state at export to the same rows. */
class Guard {
  constructor(limits, classes) {
    Object.assign(this, { limits, classes });
    this.clear();
  }

  clear() {
    this.counts = [0, 1].map(() => new Array(this.classes).fill(0));
    this.seen = 0;
  }

  /** "collapsed" or "good" after a whole window of class codes, which then begins anew; else "". */
  look(answers, source) {
    answers.forEach((code) => this.counts[0][code]++);
    source.forEach((code) => this.counts[1][code]++);
    this.seen += answers.length;
    if (this.seen < this.limits.window) return "";
    const [now, usual] = this.counts.map(effective);
    this.clear();
    return now < this.limits.share * usual ? "collapsed" : "good";
  }
}

/** A bundle at work. Open one after the other: the runtime has one place for files beside a graph. */
export class Runner {
  static async open(folder) {
    const { about, files } = await read(folder);
    const sessions = {};
    const externalData = WEIGHTS in files ? [{ path: WEIGHTS, data: files[WEIGHTS] }] : [];
    for (const [verb, { file }] of Object.entries(about.verbs)) {
      sessions[verb] = await ort.InferenceSession.create(files[file], { executionProviders: ["wasm"], externalData });
    }
    return new Runner(about, sessions, tensors(files["state.safetensors"]));
  }

  constructor(about, sessions, first) {
    Object.assign(this, { about, sessions, first });
    const sizes = about.stream.columns.map(({ shape }) => shape.reduce((a, b) => a * b, 1));
    this.width = sizes.reduce((a, b) => a + b);
    this.reset();
  }

  /** Begin again with the state that was exported. Tensors are never written to, so references are enough to keep one. */
  reset() {
    this.state = this.good = this.first;
    this.guard = new Guard(this.about.guard, this.about.verbs.predict.answers.scores.shape[1]);
    this.counts = { steps: 0, resets: 0, rollbacks: 0 };
  }

  /** Back to the last good state. It is used once: if it goes wrong again, that at export is next. */
  rollback() {
    this.state = this.good;
    this.good = this.first;
    this.counts.rollbacks++;
  }

  /** Scores of rows, an array of arrays; changes nothing. */
  async predict(rows) {
    return this.scores(await this.run("predict", rows));
  }

  /** The scores before the step, and the step. */
  async adapt(rows) {
    if (!("adapt" in this.sessions)) return this.predict(rows);
    const answers = await this.run("adapt", rows);
    const scores = this.scores(answers);
    const [took, , reset] = answers.outcome.data;
    this.counts.steps += took;
    this.counts.resets += reset;
    const written = Object.fromEntries(this.about.verbs.adapt.writes.map((name) => [name, answers[`new.${name}`]]));
    if (!Object.values(written).every(finite)) {
      this.counts.rollbacks++; // the state of before stays
      return scores;
    }
    this.state = { ...this.state, ...written };
    if (took && this.counts.steps % this.about.guard.every === 0) await this.look(rows, scores);
    return scores;
  }

  /** Ask the state at export too, and act on what the guard says. */
  async look(rows, scores) {
    const source = this.scores(await this.run("predict", rows, this.first));
    const said = this.guard.look(scores.map(argmax), source.map(argmax));
    if (said === "good") this.good = this.state;
    if (said === "collapsed") this.rollback();
  }

  /** Answers and new state of a verb, by the names of the graph's outputs. */
  async run(verb, rows, state = this.state) {
    const data = new ARRAYS[this.about.rows](rows.length * this.width);
    rows.forEach((row, i) => data.set(row, i * this.width));
    const given = { x: new ort.Tensor(this.about.rows, data, [rows.length, this.width]) };
    for (const name of this.about.verbs[verb].reads) given[`old.${name}`] = state[name];
    return this.sessions[verb].run(given);
  }

  scores({ scores: { data, dims: [rows, classes] } }) {
    return Array.from({ length: rows }, (_, i) => data.slice(i * classes, (i + 1) * classes));
  }
}
