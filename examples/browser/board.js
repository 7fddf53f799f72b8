// A board to draw a digit on, and the drawing as the digits of the stream are: cut out, fitted, made small.

const PEN = 30; // pixels

/** Show a row as an image, a pixel for each number. */
export function paint(canvas, row, width, height) {
  Object.assign(canvas, { width, height });
  const image = new ImageData(width, height);
  row.forEach((v, i) => image.data.set([255 * v, 255 * v, 255 * v, 255], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** The smallest box around all ink, {left, top, width, height}; null where there is none. */
function boxOf(ink, width) {
  let [left, top, right, bottom] = [Infinity, Infinity, -1, -1];
  ink.forEach((v, i) => {
    if (v < 0.25) return;
    const [x, y] = [i % width, Math.floor(i / width)];
    [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x), Math.max(bottom, y)];
  });
  return right < 0 ? null : { left, top, width: right - left + 1, height: bottom - top + 1 };
}

/** How much of the image the clean digits of the stream fill: the median of the longer side of their boxes, in pixels. */
function usualSize(rows) {
  const sizes = Array.from({ length: rows.rows }, (_, i) => {
    const { width, height } = boxOf(rows.at(0, 0, i).x, rows.width) ?? rows;
    return Math.max(width, height);
  });
  return sizes.sort((a, b) => a - b)[sizes.length >> 1];
}

export class Board {
  /** changed is called after every stroke's piece. */
  constructor(canvas, rows, changed) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d", { willReadFrequently: true });
    this.rows = rows;
    this.size = usualSize(rows);
    const at = (event) => [event.offsetX, event.offsetY].map((v) => (v * canvas.width) / canvas.clientWidth);
    let last = null;
    canvas.onpointerdown = (event) => {
      canvas.setPointerCapture(event.pointerId);
      last = at(event);
      canvas.onpointermove(event);
    };
    canvas.onpointermove = (event) => {
      if (!last) return;
      this.stroke(last, (last = at(event)));
      changed();
    };
    canvas.onpointerup = canvas.onpointercancel = () => (last = null);
  }

  stroke(from, to) {
    Object.assign(this.pen, { lineWidth: PEN, lineCap: "round", strokeStyle: "#fff" });
    this.pen.beginPath();
    this.pen.moveTo(...from);
    this.pen.lineTo(...to);
    this.pen.stroke();
  }

  clear() {
    this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  /** The drawing as a row: its box in the middle, as large as digits are here, each pixel the mean of its ink. */
  row() {
    const { rows, canvas, size } = this;
    const ink = this.pen.getImageData(0, 0, canvas.width, canvas.height).data.filter((_, i) => i % 4 === 3);
    const row = new Float32Array(rows.width * rows.height);
    const box = boxOf(ink.map((v) => (v > 127 ? 1 : 0)), canvas.width);
    if (!box) return row;
    const scale = Math.max(box.width, box.height) / size;
    const counts = new Float32Array(row.length);
    ink.forEach((v, i) => {
      const x = Math.floor(((i % canvas.width) - box.left - box.width / 2) / scale + rows.width / 2);
      const y = Math.floor((Math.floor(i / canvas.width) - box.top - box.height / 2) / scale + rows.height / 2);
      if (x < 0 || x >= rows.width || y < 0 || y >= rows.height) return;
      row[y * rows.width + x] += v / 255;
      counts[y * rows.width + x]++;
    });
    return row.map((v, i) => v / Math.max(1, counts[i]));
  }
}
