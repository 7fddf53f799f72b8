// What test_browser.py has Chromium do; its constants stand in plan.json.

import { Rows } from "./rows.js";
import { Runner } from "./runner.js";

async function check() {
  const { kinds, limits, severity, sizes, spoilt, steps } = await (await fetch("plan.json")).json();
  const said = { trained: [], adapting: [], counts: [], refused: [] };

  const rows = await Rows.open("made");
  const trained = await Runner.open("made/source");
  const runner = await Runner.open("made/bundle");

  async function walk(first) {
    for (let i = first; i < first + steps; i++) {
      const x = Array.from({ length: sizes[i % sizes.length] }, (_, j) => rows.at(i % kinds, severity, 16 * i + j).x);
      for (const scores of await trained.predict(x)) said.trained.push(Array.from(scores));
      for (const scores of await runner.adapt(x)) said.adapting.push(Array.from(scores));
    }
    said.counts.push({ ...runner.counts });
  }
  await walk(0);
  Object.assign(runner.about.guard, limits);
  await walk(steps);

  // A step that gives what is not finite.
  const digit = rows.at(0, severity, 0).x;
  const [before] = await runner.predict([digit]);
  const { adapt } = runner.sessions;
  runner.sessions.adapt = {
    async run(given) {
      const found = await adapt.run(given);
      found["new.moving"].data[0] = Infinity;
      return found;
    },
  };
  await runner.adapt([digit]);
  const [after] = await runner.predict([digit]);
  said.kept = before.every((v, i) => v === after[i]);
  said.counted = runner.counts.rollbacks - said.counts[1].rollbacks;

  for (const folder of spoilt) await Runner.open(folder).catch((error) => said.refused.push(error.message));

  // The page itself: it plays, a person draws, and presses what there is to press.
  const frame = document.body.appendChild(document.createElement("iframe"));
  const part = (id) => frame.contentDocument.getElementById(id);
  const texts = (...ids) => ids.map((id) => part(id).textContent);
  async function until(true_) {
    while (!true_()) await new Promise((done) => setTimeout(done, 20));
  }
  frame.width = 1000;
  frame.src = `index.html?kind=3&severity=${severity}&batch=16&steps=4`;
  await until(() => ["ready", "fault"].includes(frame.contentDocument?.body?.dataset.state));
  if (!part("fault").hidden) throw new Error(part("fault").textContent);
  said.played = texts("trained", "adapting", "seen-count", "now");

  const board = part("board");
  const { left, top } = board.getBoundingClientRect();
  board.setPointerCapture = () => {}; // there is no pointer
  for (const [type, y] of [["pointerdown", 40], ["pointermove", 240], ["pointerup", 240]]) {
    board.dispatchEvent(new PointerEvent(type, { clientX: left + 140, clientY: top + y }));
  }
  await until(() => !part("teach").disabled && part("bars").querySelector(".best"));
  const image = part("seen").getContext("2d").getImageData(0, 0, rows.width, rows.height).data;
  said.drawn = Array.from(image.filter((_, i) => i % 4 === 0));

  part("rollback").click();
  await until(() => texts("rollbacks")[0] === "1");
  part("reset").click();
  await until(() => texts("seen-count")[0] === "0");
  said.begun = texts("trained", "rollbacks", "now");
  return said;
}

const said = await check().catch((error) => ({ fault: error.stack }));
await fetch("said", { method: "POST", body: JSON.stringify(said) });
