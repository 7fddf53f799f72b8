"""Steps that move some rows of a weight, and steps on any number of rows, beside the learner's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.edge.row_sparse import chosen
from driftway.adapt.edge.runner import BundleError, Runner
from driftway.adapt.edge.steps import CannotExport, Verb, steps_of
from driftway.models.kernels.row_choice import Choice
from numpy.testing import assert_allclose

SPEC = dw.StreamSpec(
    "images",
    tuple(dw.Column(f"x{j}", missing=False) for j in range(64)),
    classes=tuple("abcd"),
    shape=(1, 8, 8),
    notes={"mean": [0.3], "std": [0.7]},
)
State = dict[str, torch.Tensor]


def rows(i: int, n: int = 5) -> dw.Batch:
    x = np.random.default_rng(i).random((n, 64), np.float32).astype(np.float64)
    return dw.Batch(np.arange(n) + 100 * i, x, 0.0, (np.arange(n) + i) % 4)


def made(name: str, taught: int = 2, n: int = 5, **settings: Any) -> Any:
    learner = dw.learner(name, SPEC, seed=3, **settings)
    for i in range(taught):
        learner.learn(rows(i, n), learner.predict(rows(i, n)))
    return learner


def step(verb: Verb, state: State, batch: dw.Batch, kind: torch.dtype = torch.float32) -> State:
    """The state after a step of the module, as the runner would have it."""
    return verb.step({"x": torch.from_numpy(batch.x).to(kind), "y": torch.from_numpy(batch.y)}, state)[1]


def known(learner: Any) -> State:
    """What the learner has, named as in a bundle."""
    slots = {f"{n}.{k}": t for n, slot in learner.optimiser.slots.items() for k, t in slot.items() if t.dim()}
    return {**{n: w.detach() for n, w in learner.weights.items()}, **slots}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "momentum": ("migu", {"model": "mlp:12-8", "momentum": 0.9, "weight_decay": 0.01}),
    "adamw": ("migu", {"model": "mlp:12", "optimizer": "adamw", "lr": 0.01, "clip": 0.5, "weight_decay": 0.01}),
    "passes": ("migu", {"model": "mlp:12", "passes": 2, "clip": 0.5, "momentum": 0.9}),
    "convolutions": ("migu", {"model": "convnet:4-6", "norm": "none", "migu_bias": True, "momentum": 0.5}),
    "reference": ("migu", {"model": "mlp:12", "migu_mode": "reference", "momentum": 0.9, "clip": 0.3}),
    "head": ("migu", {"model": "convnet:4", "head_only": True, "migu_layers": "head", "migu_block_rows": 2}),
    "rows": ("sparcl", {"model": "mlp:20-20", "granularity": "row", "momentum": 0.9, "gradient_share": 0.4}),
    "channels": ("sparcl", {"model": "convnet:12-16", "norm": "none", "granularity": "row", "sparsity": 0.25}),
    "entries": ("random-mask", {"model": "convnet:12-16", "norm": "none", "momentum": 0.9, "clip": 0.1}),
    "group-norm": ("finetune", {"model": "convnet:4", "norm": "group", "lr": 0.05}),
}


@pytest.mark.parametrize(("name", "settings"), CASES.values(), ids=CASES)
def test_steps_on_several_rows_are_the_learners(name: str, settings: dict[str, Any]) -> None:
    learner = made(name, **settings)
    steps = steps_of(learner)
    verb, state = steps.verbs["learn"], dict(steps.state)
    assert not verb.single
    for i, n in ((2, 5), (3, 1), (4, 9)):
        state = step(verb, state, rows(i, n))
        learner.learn(rows(i, n), learner.predict(rows(i, n)))
    told = known(learner)
    assert {n for n in state if n != "taken"} <= set(told)
    for n in state.keys() & told.keys():
        assert_allclose(state[n].numpy(), told[n].numpy(), atol=2e-6, err_msg=n)
    assert max(float((state[n] - t).abs().max()) for n, t in steps.state.items()) > 1e-3
    apart = "migu" in name and settings.get("passes", 1) == 1 and "migu_mode" not in settings
    assert bool(verb.some) == (apart or settings.get("granularity") == "row")


def test_statistics_that_follow_rows_see_them_one_at_a_time() -> None:
    learner = made("migu", n=1, model="mlp-norm:8")
    steps = steps_of(learner)
    assert steps.verbs["learn"].single
    state = step(steps.verbs["learn"], dict(steps.state), rows(2, 1))
    learner.learn(rows(2, 1), learner.predict(rows(2, 1)))
    for n, weight in learner.weights.items():
        assert_allclose(state[n].numpy(), weight.detach().numpy(), atol=2e-6, err_msg=n)


def test_rows_are_chosen_as_the_learner_does() -> None:
    y = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 12)))
    for choice in (Choice(0.7), Choice(0.5, "token_l1", "bottom"), Choice(0.5, block_rows=3)):
        own = y.abs() / y.abs().sum(1, keepdim=True) if choice.score == "token_l1" else y.abs()
        assert torch.equal(chosen(choice, y), choice.rows(own.sum(0)))


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("migu", {"model": "mlp:12", "migu_mode": "lazy"}, "strict or reference"),
        ("migu", {"model": "mlp:12", "migu_select": "random"}, "at random"),
        ("migu", {"model": "mlp:12", "migu_quantile": True}, "quantile"),
        ("migu", {"model": "mlp:12", "migu_block_rows": 5}, "leave a rest"),
        ("sparcl", {"model": "mlp:64-64", "granularity": "block", "block": "8x8"}, "element or row"),
    ],
)
def test_rows_without_a_graph_are_said(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CannotExport, match=words):
        steps_of(dw.learner(name, SPEC, **settings))


# --- bundles ------------------------------------------------------------------------------------------------------

ADAMW = {"model": "mlp:12", "optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1}


@pytest.fixture(name="bundle", scope="module")
def bundle_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MIGU on any number of rows. Its export holds every graph against the checker and the standard domain."""
    found: Path = dw.export(made("migu", **ADAMW), SPEC, tmp_path_factory.mktemp("migu") / "bundle")
    return found


def test_only_active_rows_leave_the_graph(bundle: Path) -> None:
    import onnx

    graph = onnx.load(bundle / "learn.onnx").graph
    assert [n.op_type for n in graph.node].count("TopK") == 2
    assert "ScatterND" not in {n.op_type for n in graph.node}
    assert not [n for n in graph.node if n.op_type == "Transpose" and n.input[0].startswith("old.")], (
        "weights as they are"
    )
    sizes = {o.name: [d.dim_value for d in o.type.tensor_type.shape.dim] for o in graph.output}
    assert sizes["some.body.1.weight"] == sizes["some.body.1.weight.v"] == [4, 64], "12 rows, 0.7 of them masked"
    assert "new.body.1.weight" not in sizes


def test_a_bundle_is_the_learner_and_rests_where_that_does(bundle: Path, tmp_path: Path) -> None:
    learner, runner = made("migu", **ADAMW), Runner(bundle)
    for i, n in ((2, 5), (3, 1), (4, 9), (5, 1)):
        batch, before = rows(i, n), {k: v.copy() for k, v in runner.now.items()}
        runner.adapt(batch.x, batch.ids.tolist())
        assert runner.label(batch.ids.tolist(), batch.y.tolist()) == n
        learner.learn(batch, learner.predict(batch))
        now = runner.now
        moved = now["body.1.weight.t"] > before["body.1.weight.t"]
        assert moved.sum() == 4
        assert (now["body.1.weight"][moved] != before["body.1.weight"][moved]).any(1).all()
        for name in ("body.1.weight", "body.1.weight.m", "body.1.weight.v"):
            assert (now[name][~moved] == before[name][~moved]).all()
        if i == 3:
            runner.save(tmp_path / "saved")
            runner = Runner(bundle, state=tmp_path / "saved")
    assert_allclose(runner.predict(rows(9).x), learner.predict(rows(9)).scores, atol=1e-5)
    for name, value in steps_of(learner).state.items():
        assert_allclose(runner.now[name], value.numpy(), atol=1e-5, err_msg=name)


@pytest.mark.parametrize("at_once", [True, False])
def test_rows_of_which_one_overflows_change_nothing(bundle: Path, *, at_once: bool) -> None:
    runner, batch = Runner(bundle), rows(2)
    runner.verbs["learn"]["single"] = not at_once
    batch.x[3], batch.y[3] = 1e38, 0
    before = {k: v.copy() for k, v in runner.now.items()}
    with pytest.raises(BundleError, match="nothing was changed"):
        runner.learn(batch.x, batch.y)
    assert all((v == before[k]).all() for k, v in runner.now.items())
    runner.learn(batch.x[:3], batch.y[:3])
    assert all((v != before[k]).any() for k, v in runner.now.items())


def test_over_many_steps_a_bundle_stays_as_near_to_double_precision_as_pytorch(bundle: Path) -> None:
    learner, runner = made("migu", **ADAMW), Runner(bundle)
    steps = steps_of(learner)
    double = {n: t.double() for n, t in steps.state.items()}
    for i in range(2000):
        batch = rows(i % 50, 1 + i % 3)
        runner.learn(batch.x, batch.y)
        learner.learn(batch, None)
        double = step(steps.verbs["learn"], double, batch, torch.float64)
        if i in (199, 1999):
            ours, eager = (
                max(float((double[n] - torch.as_tensor(state[n])).abs().max()) for n in double.keys() & state.keys())
                for state in (runner.now, known(learner))
            )
            assert 0 < ours <= 3 * eager
