"""A learner of one's own: nearest class mean with fading memory, judged beside the baselines on a drifting stream."""

from dataclasses import dataclass

import driftway as dw
import numpy as np


class NearestMean(dw.Learner):
    """Each class is a mean that forgets: m_c <- m_c + rate (x - m_c)."""

    @dataclass(frozen=True)
    class Params:
        """rate: how fast a mean follows its class."""

        rate: float = 0.02

    def __init__(self, spec: dw.StreamSpec, params: Params | None = None, seed: int = 0) -> None:
        super().__init__(spec, params, seed)
        self.means = np.zeros((spec.n_classes, spec.n_features))

    def predict(self, batch: dw.Batch) -> dw.Prediction:
        distance = ((batch.x[:, None] - self.means) ** 2).sum(axis=2)
        scores = 1 / (distance + 1e-9)
        return dw.Prediction(distance.argmin(axis=1), scores / scores.sum(axis=1, keepdims=True))

    def learn(self, batch: dw.Batch, prediction: dw.Prediction) -> None:  # noqa: ARG002
        for x, y in zip(batch.x, batch.y):
            self.means[y] += self.params.rate * (x - self.means[y])

    def state(self) -> dict[str, np.ndarray]:
        return {"means": self.means}

    def load(self, state: dict[str, np.ndarray]) -> None:
        self.means = np.array(state["means"])


stream = dw.take(dw.stream("sea-drift"), 4000)
evaluator = dw.Prequential(stream.spec)
loop = dw.Loop(NearestMean(stream.spec), evaluators=[evaluator], row_by_row=True, every=1000)
for record in loop.steps(stream):
    if record.kind == "progress":
        print(f"row {record.step:>5}  accuracy {record.values['accuracy']:.3f}")
print({name: round(value, 3) for name, value in loop.summary()["baseline"].items()})
