"""Avalanche's strategies in our loop: what they learn there is what they learn in their own."""

from __future__ import annotations

import random
import warnings
from importlib.util import find_spec
from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.learners import learner_params
from driftway.adapt.learners.avalanche_strategy import STRATEGIES, AvalancheStrategy
from driftway.adapt.loop import Loop
from driftway.models.networks import build
from numpy.testing import assert_array_equal
from torch import nn

pytestmark = pytest.mark.skipif(find_spec("avalanche") is None, reason="needs the extra avalanche")

GIVEN: dict[str, dict[str, Any]] = {
    "Replay": {"mem_size": 30},
    "DER": {"mem_size": 30},
    "MIR": {"mem_size": 30, "subsample": 12},
    "AGEM": {"patterns_per_exp": 20, "sample_size": 10},
    "GEM": {"patterns_per_exp": 10},
    "EWC": {"ewc_lambda": 5.0},
    "LwF": {"alpha": 1.0, "temperature": 2.0},
    "MAS": {"lambda_reg": 0.01},
}
DRAWS_NOTHING = ("Naive", "EWC", "LwF", "MAS")


def digits() -> dw.Stream:
    """Five experiences of 57 rows each in batches of ten, so that the last batch of each is a short one."""
    return dw.rebatch(dw.stream("split-digits", train_rows=57, test_rows=20), 10)


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def learnt(name: str, seed: int = 0, **settings: Any) -> torch.Tensor:
    """The network's weights after a whole stream."""
    stream = digits()
    learner = dw.learner(
        f"avalanche:{name}", stream.spec, seed=seed, model="mlp:12", **(GIVEN.get(name, {}) | settings)
    )
    for _ in Loop(learner).steps(stream):
        pass
    assert isinstance(learner, AvalancheStrategy)
    return weights(learner.net)


@pytest.mark.parametrize("name", DRAWS_NOTHING)
def test_it_learns_what_avalanche_learns_alone(name: str) -> None:
    """Bit for bit where rows are not shuffled."""
    benchmark = dw.to_avalanche(digits())
    from avalanche.training import supervised

    net = build("mlp:12", (1, 8, 8), 10, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no loggers
        strategy = getattr(supervised, name)(
            model=net,
            optimizer=torch.optim.SGD(net.parameters(), 0.1, 0.9),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=10,
            evaluator=None,
            **GIVEN.get(name, {}),
        )
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[], shuffle=False)
    assert torch.equal(learnt(name, momentum=0.9), weights(net))


def test_naive_is_our_finetune() -> None:
    stream = digits()
    ours = dw.learner("finetune", stream.spec, model="mlp:12", momentum=0.9, weight_decay=0.01, passes=2)
    for _ in Loop(ours).steps(stream):
        pass
    theirs = learnt("Naive", momentum=0.9, weight_decay=0.01, passes=2)
    torch.testing.assert_close(theirs, weights(ours.net))  # type: ignore[attr-defined] # a gradient learner


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_it_draws_comes_from_the_seed(name: str) -> None:
    stream = digits()  # scikit-learn draws a number when it is first imported
    assert stream.spec.length == 5 * 57
    torch.manual_seed(5)
    random.seed(5)
    before = torch.get_rng_state(), random.getstate()
    first = learnt(name)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    torch.manual_seed(6)
    random.seed(6)
    assert torch.equal(first, learnt(name))
    assert not torch.equal(first, learnt(name, seed=1))
    if name != "Naive":
        assert not torch.equal(first, learnt("Naive")), "the strategy did nothing"


def test_replay_has_its_memory() -> None:
    """Rows of earlier experiences beside those at hand, as many as there are of these."""
    stream = digits()
    learner = dw.learner("avalanche:Replay", stream.spec, model="mlp:12", mem_size=30)
    assert isinstance(learner, AvalancheStrategy)
    sizes = []
    for event in stream:
        if isinstance(event, dw.Boundary):
            learner.boundary(event)
        elif isinstance(event, dw.Batch):
            learner.learn(event, learner.predict(event))
            sizes.append(len(learner.strategy.mbatch[1]))
    assert sizes[:6] == [10] * 5 + [7]
    assert sizes[6:12] == [20] * 5 + [17]
    buffer = learner.strategy.plugins[0].storage_policy.buffer
    assert len(buffer) == 30
    assert set(buffer.targets) == set(range(8))


def test_predicting_changes_nothing() -> None:
    stream = digits()
    learner = dw.learner("avalanche:Naive", stream.spec, model="convnet:4-4")
    assert isinstance(learner, AvalancheStrategy)
    batches = [e for e in stream if isinstance(e, dw.Batch)]
    learner.learn(batches[0], learner.predict(batches[0]))
    state = {k: v.clone() for k, v in learner.net.state_dict().items()}
    score = learner.probe(stream.spec.experiences[0].x)
    answers = learner.predict(batches[1]), score()
    assert learner.version() == 1
    assert all(torch.equal(v, learner.net.state_dict()[k]) for k, v in state.items())
    assert not learner.net.training
    assert_array_equal(answers[0].scores, learner.predict(batches[1]).scores)
    assert_array_equal(answers[1], score())


def test_the_head_grows_with_the_classes() -> None:
    rng = np.random.default_rng(0)
    spec = dw.StreamSpec("open", (dw.Column("a"), dw.Column("b")))
    learner = dw.learner("avalanche:EWC", spec, model="mlp:8", ewc_lambda=1.0, momentum=0.9)
    for k, top in enumerate((2, 5, 9)):
        x, y = rng.normal(size=(20, 2)), rng.integers(0, top, 20)
        batch = dw.Batch(np.arange(20) + 20 * k, x, 0.0, y)
        learner.learn(batch, learner.predict(batch))
        learner.boundary(dw.Boundary("next", 0.0))
    scores = learner.predict(batch).scores
    assert scores is not None
    assert scores.shape == (20, 9)
    assert np.isfinite(scores).all()


def test_a_strategy_of_ones_own() -> None:
    dw.import_avalanche()
    from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin
    from avalanche.training.supervised import Naive

    def make(net: nn.Module, batch: int) -> Any:
        optimiser = torch.optim.AdamW(net.parameters(), 0.01)
        schedule = LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(optimiser, 1, 0.5), step_granularity="iteration")
        return Naive(
            model=net,
            optimizer=optimiser,
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=batch,
            plugins=[schedule],
            evaluator=EvaluationPlugin(),
        )

    stream = digits()
    learner = AvalancheStrategy(stream.spec, AvalancheStrategy.Params(model="mlp:12"), build=make)
    for _ in Loop(learner).steps(dw.take(stream, 30)):
        pass
    assert learner.strategy.optimizer.param_groups[0]["lr"] == 0.01 * 0.5**3


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("avalanche", {}, "expected avalanche:Strategy"),
        ("avalanche:Nave", {}, "did you mean Naive"),
        ("avalanche:JointTraining", {}, "as it comes: there are Naive"),
        ("avalanche:EWC", {}, "ewc_lambda"),
        ("avalanche:Naive", {"mem_size": 3}, "no parameter 'mem_size'"),
    ],
)
def test_what_cannot_be_is_refused(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(dw.InputError, match=words):
        dw.learner(name, digits().spec, **settings)


def test_a_strategy_that_fails_is_one_line() -> None:
    stream = digits()
    learner = dw.learner("avalanche:EWC", stream.spec, ewc_lambda=1.0, mode="online")
    with pytest.raises(dw.InputError, match="cannot be built: You need to set `decay_factor`"):
        list(Loop(learner).steps(stream))
    learner = dw.learner("avalanche:AGEM", stream.spec, patterns_per_exp=20, sample_size=0)
    with pytest.raises(dw.InputError, match=r"avalanche:AGEM failed in experience \d: ValueError"):
        list(Loop(learner).steps(stream))


def test_it_keeps_no_checkpoint_and_says_so() -> None:
    learner = dw.learner("avalanche:Naive", digits().spec)
    with pytest.raises(dw.CannotCheckpoint, match="objects of its own"):
        learner.state()
    with pytest.raises(dw.CannotCheckpoint, match="cannot take over"):
        learner.load({})


def test_parameters_are_those_of_network_and_strategy() -> None:
    assert list(learner_params("avalanche:Replay").__dataclass_fields__)[-2:] == ["passes", "mem_size"]
