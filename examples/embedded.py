"""Driftway inside a program of one's own: predict when a row comes, label when the truth comes, save, go on."""

import tempfile

import driftway as dw
import numpy as np

spec = dw.StreamSpec("payments", (dw.Column("amount"), dw.Column("hour")), classes=("fine", "fraud"))
folder = tempfile.mkdtemp()


def make_loop() -> dw.Loop:
    return dw.Loop(
        dw.learner("hoeffding-tree", spec), evaluators=[dw.Prequential(spec)], checkpoint=dw.Checkpointer(folder)
    )


def truth_of(row: int, x: np.ndarray) -> int:
    """What the world says of a payment; in the middle it changes its mind."""
    return int(x[0] + x[1] > (1.2 if row < 2500 else 0.8))


rng = np.random.default_rng(0)
loop, truths = make_loop(), []
for row in range(5000):
    x = rng.random(2)
    loop.predict(dw.Batch(np.array([row]), x[None], time=row))
    truths.append(truth_of(row, x))
    if row >= 20:  # the truth about a payment is known twenty payments later
        loop.label(dw.Labels(np.array([row - 20]), np.array([truths[row - 20]]), time=row))
    if row == 3000:  # stop here, as if the program were restarted, and go on in a new loop
        loop.save(cursor={})
        loop = make_loop()
        loop.load(dw.Checkpointer(folder).load_newest().parts)

summary = loop.summary()
print(f"accuracy {summary['accuracy']:.3f} over {summary['labelled']} labels, {summary['waiting']} still to come")
print(f"majority would have had {summary['baseline']['majority']:.3f}")
