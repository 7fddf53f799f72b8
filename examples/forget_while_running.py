"""One row in a hundred asks to be forgotten while a stream runs; the model is that of a stream without these rows."""

import driftway as dw
import numpy as np


def run(stream: dw.Stream) -> tuple[dw.Loop, dw.Prequential]:
    watch = dw.Prequential(stream.spec)
    learner = dw.learner("acu", stream.spec, width=256, exact="bitwise")
    loop = dw.Loop(learner, evaluators=[watch], every=10_000)
    for record in loop.steps(stream):
        if record.kind == "forget":
            print(f"row {record.step}: {record.values['note']}")
    return loop, watch


def digits() -> dw.Stream:
    return dw.rebatch(dw.stream("split-digits", seed=0), 16)


gone = np.random.default_rng(0).choice(600, 12, replace=False)
asked, watch = run(dw.ask_to_forget(digits(), {600: gone[:6], 900: gone[6:]}, reason="asked by their owner"))
plain, other = run(digits())

never = dw.learner("acu", digits().spec, width=256, exact="bitwise")
for event in digits():
    if isinstance(event, dw.Batch):
        kept = event.rows(~np.isin(event.ids, gone))
        never.learn(kept, never.predict(kept))

print("accuracy with requests", round(watch.summary()["accuracy"], 4), "without", round(other.summary()["accuracy"], 4))
print("as if never learnt, in every bit:", asked.learner.facts()["head_sha256"] == never.facts()["head_sha256"])
assert asked.learner.facts()["head_sha256"] == never.facts()["head_sha256"]
