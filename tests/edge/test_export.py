"""Making bundles: whole or not at all, standard operators only, equal to PyTorch on rows that were not traced."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import onnx
import pytest
import torch
from driftway.adapt.cli import main
from driftway.adapt.edge import tracing
from driftway.adapt.edge.bundle import headed
from driftway.adapt.edge.runner import Runner
from driftway.adapt.edge.steps import CannotExport, Verb, steps_of
from driftway.adapt.learners.test_time_recipes import BatchNormAdapt, Mixture, Tent
from torch import Tensor, nn


def test_a_bundle_says_what_it_holds(bundle: Path) -> None:
    about = json.loads((bundle / "bundle.json").read_text())
    names = {p.name for p in bundle.iterdir()}
    assert names == {"predict.onnx", "adapt.onnx", "state.safetensors", "run.py", "bundle.json"}
    for name in names - {"bundle.json"}:
        body = (bundle / name).read_bytes()
        assert about["files"][name] == {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}
    assert about["verbs"]["adapt"]["reads"] == about["verbs"]["adapt"]["writes"] == ["moving", "momentum"]
    assert about["verbs"]["predict"]["answers"] == {"scores": {"dtype": "float32", "shape": [None, 6]}}
    assert about["state"]["moving"] == {"dtype": "float32", "shape": [24]}
    (one,) = about["stream"]["columns"]
    assert one == {"name": "x", "shape": [64], "categories": None, "open": False, "missing": False}


@pytest.mark.parametrize(
    ("columns", "entries"),
    [
        ([dw.Column(f"pixel {i}.{j}", missing=False) for i in range(2) for j in range(3)], [("pixel ", [2, 3])]),
        ([dw.Column("x0")], [("x", [1])]),
        ([dw.Column("x0"), dw.Column("x1", ("a", "b"))], [("x0", []), ("x1", [])]),
        ([dw.Column("x1"), dw.Column("x0")], [("x1", []), ("x0", [])]),
        ([dw.Column("y0"), dw.Column("x1")], [("y0", []), ("x1", [])]),
        ([dw.Column("x1"), dw.Column("x2")], [("x1", []), ("x2", [])]),
        ([dw.Column("age"), dw.Column("size")], [("age", []), ("size", [])]),
    ],
)
def test_columns_that_are_alike_are_one_entry(columns: list[dw.Column], entries: list[tuple[str, list[int]]]) -> None:
    told = headed(dw.StreamSpec("table", tuple(columns), classes=("n", "y")), {})["stream"]["columns"]
    assert [(c["name"], c["shape"]) for c in told] == entries


@pytest.mark.parametrize("verb", ["predict", "adapt"])
def test_graphs_hold_standard_operators_and_nothing_of_this_machine(bundle: Path, verb: str) -> None:
    model = onnx.load(bundle / f"{verb}.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {n.domain for n in model.graph.node} == {""}
    assert [o.domain for o in model.opset_import] == [""]
    assert b"/" not in b"".join(p.encode() for n in model.graph.node for p in (n.name, n.doc_string))
    assert not any(n.metadata_props for n in model.graph.node)


def test_the_same_learner_makes_the_same_graph(bundle: Path, make: Any) -> None:
    steps = steps_of(make(Mixture(rho=0.05, alpha=0.4, lr=0.01)))
    model = tracing.traced("predict", steps.verbs["predict"], steps.state)
    assert model.SerializeToString(deterministic=True) == (bundle / "predict.onnx").read_bytes()


def test_a_finished_run_is_exported_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--set", "epochs=1", "--set", "model=convnet:6-8", "--set", "cache=false"]
    run = ["run", "digits-c", "--learner", "bn-adapt", "--batch", "4", "--limit", "12", "--out", str(tmp_path / "run")]
    assert main([*run, *settings]) == 0
    assert main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "bundle"), "--weights", "int8"]) == 0
    said = capsys.readouterr().out
    assert said.endswith(f"{tmp_path / 'bundle'}\n")
    assert "predict.onnx" in said
    assert "MB resident" in said
    tensors = onnx.load(tmp_path / "bundle" / "predict.onnx").graph.initializer
    assert onnx.TensorProto.INT8 in {t.data_type for t in tensors}
    about = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert (about["learner"], about["settings"]["model"], about["weights"], list(about["verbs"])) == (
        "bn-adapt",
        "convnet:6-8",
        "int8",
        ["predict"],
    )
    assert Runner(tmp_path / "bundle").adapt(np.ones((3, 64))).shape == (3, 10)
    assert main(["export", str(tmp_path), "--to", str(tmp_path / "other")]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_statistics_that_follow_are_state_of_the_graph(make: Any, rows: Any, tmp_path: Path) -> None:
    """The trap: statistics read while tracing would be constants, and the traced rows would not tell."""
    learner = make(BatchNormAdapt(statistics="running", follow=0.2))
    runner = Runner(dw.export(learner, learner.spec, tmp_path / "running"))
    for i, n in enumerate((20, 1, 5)):
        batch = rows(n, i)
        said = learner.predict(batch)
        learner.adapt(batch, said)
        np.testing.assert_allclose(runner.adapt(batch.x), said.scores, atol=1e-5)
    assert runner.counts["steps"] == 3


def test_nothing_is_written_where_something_cannot_be_exported(make: Any, tmp_path: Path) -> None:
    learner = make(Tent())
    learner.net.body.append(nn.Dropout())
    with pytest.raises(dw.InputError, match=r"Dropout at body\.\d") as caught:
        dw.export(learner, learner.spec, tmp_path / "none")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken_is_refused(make: Any, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("")
    learner = make(Tent())
    for place in (tmp_path, tmp_path / "there"):
        with pytest.raises(dw.InputError, match="there is something already"):
            dw.export(learner, learner.spec, place)


class Foreign(nn.Module):
    """Has an operator without an ONNX form."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (torch.linalg.qr(x)[0],)


def _verb(module: nn.Module) -> Verb:
    return Verb(module, lambda n, seed: {"x": torch.rand((n, 3), generator=torch.Generator().manual_seed(seed))}, ())


def test_a_constant_out_of_the_example_is_found_out() -> None:
    class Kept(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return (x * EXAMPLE.mean(),)

    verb = _verb(Kept())
    EXAMPLE = verb.rows(2, 0)["x"]
    model = tracing.traced("kept", verb, {})
    EXAMPLE = verb.rows(3, 1)["x"]
    with pytest.raises(CannotExport, match=r"kept: scores differs from PyTorch"):
        tracing.compare("kept", verb, model.SerializeToString(), {})


def test_plain_numbers_beside_double_precision_are_not_rounded() -> None:
    class Decayed(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            decayed = 0.999 * x.double()
            held = torch.where(decayed > 0.3, decayed, 0.1).clamp(0.005, 0.7) + 0.2
            return (held * torch.full_like(held, 0.9) + torch.full((3,), 0.8, dtype=held.dtype),)

    model = tracing.traced("decayed", _verb(Decayed()), {})
    doubles = [i for i in model.graph.initializer if i.data_type == onnx.TensorProto.DOUBLE]
    kept = {float(v) for i in doubles for v in onnx.numpy_helper.to_array(i).flat}
    assert {0.999, 0.3, 0.1, 0.005, 0.7, 0.2, 0.9, 0.8} <= kept


def test_an_operator_without_a_form_is_named() -> None:
    with pytest.raises(CannotExport, match="qr"):
        tracing.traced("foreign", _verb(Foreign()), {})


def test_without_the_extra_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(dw.InputError, match="pip install 'driftway"):
        tracing.traced("foreign", _verb(Foreign()), {})
