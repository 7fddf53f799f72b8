// Two curves of accuracy over the digits seen, and marks where the corruption changed.

const WINDOW = 80; // digits that an accuracy is taken over
const STEP = 0.7; // pixels a digit
const EDGE = { left: 40, right: 8, top: 22, bottom: 10 };
const COPIES = ["trained", "adapting"];

function node(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

export class Curve {
  constructor(svg) {
    this.svg = svg;
    new ResizeObserver(() => this.draw()).observe(svg);
    this.clear();
  }

  clear() {
    this.seen = 0;
    this.marks = []; // {at, text}: what came from digit `at` on
    this.right = { trained: [], adapting: [] };
    this.points = { trained: [], adapting: [] };
    this.draw();
  }

  /** What comes from now on. */
  mark(text) {
    if (this.marks.at(-1)?.text !== text) this.marks.push({ at: this.seen, text });
  }

  /** One digit: whether each copy was right. */
  add(right) {
    this.seen++;
    for (const copy of COPIES) {
      this.right[copy] = [...this.right[copy], right[copy]].slice(-WINDOW);
      this.points[copy].push(this.accuracy(copy));
      if (this.points[copy].length > 4000) this.points[copy].splice(0, 1000);
    }
  }

  /** Share of right answers among the last digits, NaN before the first. */
  accuracy(copy) {
    return this.right[copy].filter(Boolean).length / this.right[copy].length;
  }

  draw() {
    const { width, height } = this.svg.getBoundingClientRect();
    const room = Math.max(1, Math.floor((width - EDGE.left - EDGE.right) / STEP));
    const first = Math.max(0, this.seen - room);
    const x = (digit) => EDGE.left + (digit - first) * STEP;
    const y = (share) => EDGE.top + (1 - share) * (height - EDGE.top - EDGE.bottom);
    const parts = [0, 0.25, 0.5, 0.75, 1].flatMap((share) => [
      node("line", { x1: EDGE.left, x2: width - EDGE.right, y1: y(share), y2: y(share) }),
      node("text", { x: EDGE.left - 6, y: y(share) + 4, "text-anchor": "end" }, `${100 * share} %`),
    ]);
    this.marks.forEach(({ at, text }, i) => {
      const end = this.marks[i + 1]?.at ?? first + room;
      if (end <= first) return;
      if (at > first) parts.push(node("line", { x1: x(at), x2: x(at), y1: EDGE.top - 14, y2: y(0), "stroke-dasharray": "2 3" }));
      const start = x(Math.max(at, first)) + 4;
      if (x(end) - start > 6 * text.length) parts.push(node("text", { x: start, y: EDGE.top - 6 }, text));
    });
    for (const copy of COPIES) {
      const shown = this.points[copy].slice(-room);
      const at = this.seen - shown.length;
      const d = shown.map((share, i) => `${i ? "L" : "M"}${x(at + i).toFixed(1)} ${y(share).toFixed(1)}`).join("");
      parts.push(node("path", { class: copy, d }));
    }
    this.svg.replaceChildren(...parts);
  }
}
