// The digits that make.py wrote: clean ones, and the same number under each corruption and severity.

export class Rows {
  static async open(folder) {
    const [about, body] = await Promise.all([fetch(`${folder}/rows.json`), fetch(`${folder}/rows.bin`)]);
    if (!about.ok || !body.ok) throw new Error(`${folder}: the digits are not there; delete the folder and start anew`);
    return new Rows(await about.json(), new Uint8Array(await body.arrayBuffer()));
  }

  constructor(about, body) {
    Object.assign(this, about); // stream, shape, rows (of each kind and severity), kinds, severities
    [this.height, this.width] = about.shape.slice(-2);
    this.body = body;
    this.length = 1 + this.height * this.width; // of a row in bytes: its class and its pixels
  }

  /** Digit i of a corruption: {x: pixels in 0..1, y: class code}. severity 0: clean, whatever the kind. */
  at(kind, severity, i) {
    const block = severity ? 1 + (severity - 1) * this.kinds.length + kind : 0;
    const start = (block * this.rows + (i % this.rows)) * this.length;
    return { x: Float32Array.from(this.body.subarray(start + 1, start + this.length), (b) => b / 255), y: this.body[start] };
  }
}
