"""A Hugging Face model on disk learns a folder of one's own tasks, one after the other, and is judged on all of them.

Two folders: ``model`` has config.json, weights and tokenizer.json (or is a PEFT adapter with tokenizer.json beside it);
``tasks`` has one .jsonl file per task, a line of it being {"prompt": ..., "answer": ...}. Nothing is downloaded.
"""

import driftway as dw

stream = dw.rebatch(dw.stream("./tasks", tokenizer="model", length=64), 8)
learner = dw.learner("er", stream.spec, model="./model", lr=0.003, passes=4, memory=100, seed=0)
watch = dw.Continual(stream.spec.experiences, every=10, scenario="domain")
for record in dw.Loop(learner, continual=watch).steps(stream):
    if record.kind == "boundary":
        print("next task:", record.values["note"])
found = watch.summary()
print(f"right at the end: {found['acc']:.2f} of the held-out answers; forgotten on the way: {found['forgetting']:.2f}")
