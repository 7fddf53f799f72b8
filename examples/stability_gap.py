"""What task ends hide: a network learns digits two by two, and every update is judged.

Prints, for plain fine-tuning and for two replay policies, the accuracy at the end beside the lowest that the earlier
digits fell to on the way (min-ACC) and the worst case of every moment (WC-ACC).
"""

import driftway as dw

policies = {"finetune": dw.Finetune(), "er": dw.ER(memory=100), "derpp": dw.DERpp(memory=100)}
print(f"{'':10}{'ACC':>8}{'min-ACC':>10}{'WC-ACC':>9}{'gap depth':>11}")
for name, policy in policies.items():
    stream = dw.rebatch(dw.stream("split-digits", epochs=2, seed=3), 16)
    learner = dw.GradientLearner(stream.spec, replay=policy, seed=3)
    watch = dw.Continual(stream.spec.experiences)
    for _ in dw.Loop(learner, continual=watch).steps(stream):
        pass
    found = watch.summary()
    print(f"{name:10}{found['acc']:8.3f}{found['min_acc']:10.3f}{found['wc_acc']:9.3f}{found['gap_depth']:11.3f}")
