"""A model of one's own that scores fixed answers, made surer of the kind of answer by the frames before each one.

A recommender for a kitchen robot: twelve movements in three kinds. Its camera has gone dim; the last four frames say in
which direction its head must move to be less torn between the kinds, and it takes that one step before each answer.
"""

import driftway as dw
import torch
from torch import nn
from torch.func import functional_call

torch.manual_seed(0)
KINDS = torch.arange(12) % 3  # reach, hold, wait
body, head = nn.Sequential(nn.Linear(6, 32), nn.Tanh()), nn.Linear(32, 12)
optimiser = torch.optim.Adam([*body.parameters(), *head.parameters()], 0.02)
for _ in range(300):  # bright days: the movement is told by the first four numbers
    x = torch.randn(64, 6)
    y = (x[:, :4].argmax(1) * 3 + (x[:, 4] > 0) + (x[:, 5] > 1)).clamp(max=11)
    loss = nn.functional.cross_entropy(head(body(x)), y)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()

adapting = dw.ClusterEntropyTTT(
    body,  # stays as it is
    dict(head.named_parameters()),  # moves, by one step at a time
    lambda weights, features: functional_call(head, dict(weights), (features,)),
    dw.ClusterEntropy(KINDS),
    delta=0.01,  # a step is 1 % of the length of the trained weights
    background="wait",  # gradients in a thread; "live" never waits for it
)
scene = torch.randn(1, 6)
before = after = 0.0
for frame in range(40):
    if frame % 5 == 0:
        scene = torch.randn(1, 6)  # another scene, three seconds later
    dim = 0.4 * scene + 0.1 * torch.randn(1, 6)
    time = 0.5 * frame + 3 * (frame // 5)
    answer = adapting.answer(dim, time)
    with torch.no_grad():
        before += float(adapting.objective(head(answer.features))) / 40
    after += float(adapting.objective(answer.scores)) / 40
    adapting.observe(answer.features, time)
adapting.close()
print(f"torn between kinds of movement: {before:.3f} nats before, {after:.3f} with the step")
