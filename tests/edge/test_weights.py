"""How weights are kept: once for all graphs, in half precision, in eight bits; and no gradient where none move."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import onnx
import pytest
from driftway.adapt.edge import footprint, tracing, weights
from driftway.adapt.edge.runner import BundleError, Runner
from driftway.adapt.edge.steps import steps_of
from driftway.adapt.learners.test_time_recipes import Mixture
from onnx import TensorProto, numpy_helper

KERNEL = (8, 4, 3, 3)


def rows(n: int, seed: int = 0) -> np.ndarray:
    found: np.ndarray = np.random.default_rng(seed).random((n, 64), np.float32)
    return found


def kernels(model: onnx.ModelProto) -> list[int]:
    """Types of the tensors that are a graph's largest kernel, in whatever form."""
    return [t.data_type for t in model.graph.initializer if tuple(t.dims) == KERNEL]


@pytest.fixture(name="half", scope="module")
def half_fixture(make: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared bundle once more, in half precision, with a file of weights."""
    made, to = make(Mixture(rho=0.05, alpha=0.4, lr=0.01)), tmp_path_factory.mktemp("half") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "WORTH", 1)
        patch.setattr(weights, "LEAST", 256)
        return dw.export(made, made.spec, to, name="test-time", weights="float16")  # type: ignore[no-any-return]


def test_weights_of_both_graphs_lie_in_one_file_once(half: Path) -> None:
    places = []
    for verb in ("predict", "adapt"):
        onnx.checker.check_model(half / f"{verb}.onnx", full_check=True)
        model = onnx.load(half / f"{verb}.onnx", load_external_data=False)
        assert {n.domain for n in model.graph.node} == {""}
        (kernel,) = [t for t in model.graph.initializer if tuple(t.dims) == KERNEL]
        assert (kernel.data_location, kernel.data_type) == (TensorProto.EXTERNAL, TensorProto.FLOAT16)
        assert not kernel.raw_data
        places.append({e.key: e.value for e in kernel.external_data})
    assert places[0] == places[1]
    assert places[0]["location"] == "weights.bin"
    assert (half / "weights.bin").stat().st_size == int(places[0]["length"]) == 2 * np.prod(KERNEL)


def test_half_precision_is_a_matter_of_storage(half: Path, bundle: Path) -> None:
    whole, small = Runner(bundle), Runner(half)
    assert all(np.array_equal(v, small.now[k]) for k, v in whole.now.items())
    for i in range(5):
        np.testing.assert_allclose(small.adapt(rows(5, i)), whole.adapt(rows(5, i)), atol=5e-3)
    assert small.counts["steps"] == 5
    sizes = [(p / "predict.onnx").stat().st_size for p in (bundle, half)]
    assert sizes[0] - sizes[1] > 3 * np.prod(KERNEL)


def test_an_altered_file_of_weights_is_refused(half: Path, tmp_path: Path) -> None:
    for file in half.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "weights.bin").write_bytes(b"\1" * (half / "weights.bin").stat().st_size)
    with pytest.raises(BundleError, match=r"weights\.bin was altered"):
        Runner(tmp_path)


def test_small_graphs_stay_whole(bundle: Path) -> None:
    models = {verb: onnx.load(bundle / f"{verb}.onnx") for verb in ("predict", "adapt")}
    before = {verb: model.SerializeToString() for verb, model in models.items()}
    assert weights.apart(models) == {}
    assert {verb: model.SerializeToString() for verb, model in models.items()} == before


def test_a_number_that_half_precision_has_not_keeps_its_tensor(bundle: Path) -> None:
    model = onnx.load(bundle / "predict.onnx")
    (kernel,) = [t for t in model.graph.initializer if tuple(t.dims) == KERNEL]
    large = numpy_helper.to_array(kernel).copy()
    large[0, 0, 0, 0] = 1e6
    kernel.CopyFrom(numpy_helper.from_array(large, kernel.name))
    weights.halve(model)
    assert kernels(model) == [TensorProto.FLOAT]


def test_eight_bits_are_the_only_copy_and_answers_stay_near(bundle: Path, make: Any) -> None:
    import onnxruntime

    steps = steps_of(make(Mixture(rho=0.05, alpha=0.4, lr=0.01)))
    model = onnx.load(bundle / "adapt.onnx")
    made = weights.quantised("adapt", steps.verbs["adapt"], model, steps.state, rows(64, 9))
    onnx.checker.check_model(made, full_check=True)
    assert {n.domain for n in made.graph.node} == {""}
    assert kernels(model) == [TensorProto.FLOAT]
    assert kernels(made) == [TensorProto.INT8]
    fed = {"x": rows(20), **{f"old.{n}": t.numpy() for n, t in steps.state.items()}}
    exact, near = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(["scores", "new.moving"], fed) for m in (model, made)
    )
    assert np.abs(exact[0] - near[0]).mean() < 0.05
    moved = [a - fed["old.moving"] for a in (exact[1], near[1])]
    assert np.dot(*moved) > 0.8 * np.linalg.norm(moved[0]) * np.linalg.norm(moved[1])


def test_a_frozen_body_has_no_nodes_that_go_back() -> None:
    names = {"predict": "head.weight", "learn": "head.weight"}
    columns = tuple(dw.Column(f"x{j}", missing=False) for j in range(64))
    notes = {"mean": [0.3], "std": [0.7]}
    spec = dw.StreamSpec("images", columns, classes=tuple("abcd"), shape=(1, 8, 8), notes=notes)
    steps = steps_of(dw.learner("finetune", spec, model="convnet:4-6", head_only=True))
    counts = {}
    for verb, state in names.items():
        assert state in steps.verbs[verb].reads
        model = tracing.traced(verb, steps.verbs[verb], steps.state)
        kinds = [n.op_type for n in model.graph.node]
        counts[verb] = {k: kinds.count(k) for k in ("Conv", "ConvTranspose", "BatchNormalization", "Relu")}
    assert counts["learn"] == counts["predict"]
    assert counts["learn"]["Conv"] == 2


def test_what_cannot_be_is_said(make: Any, tmp_path: Path) -> None:
    learner = make(Mixture())
    with pytest.raises(dw.InputError, match="float32, float16, int8"):
        dw.export(learner, learner.spec, tmp_path / "b", weights="int4")
    with pytest.raises(dw.InputError, match="no source: use float16"):
        dw.export(learner, learner.spec, tmp_path / "b", weights="int8")
    assert list(tmp_path.iterdir()) == []


def test_sizes_are_told(half: Path, bundle: Path) -> None:
    promised = json.loads((half / "bundle.json").read_text())["files"]
    assert footprint.files(half) == {
        **{n: f["bytes"] for n, f in promised.items()},
        "bundle.json": (half / "bundle.json").stat().st_size,
    }
    peak, last, first = footprint.process(bundle)
    assert 10 < last <= peak < 200
    assert 0 < first < 60
    assert f"{(half / 'weights.bin').stat().st_size / 1e3:.1f} kB" in footprint.table(half)
    with pytest.raises(OSError, match="run"):
        footprint.process(half.parent)
