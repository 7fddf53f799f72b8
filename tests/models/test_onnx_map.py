"""ONNX models as frozen feature maps: the same numbers, one line for what cannot work, the file's sha256 as proof."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt import cli
from driftway.models.backbones import OnnxMap
from numpy.testing import assert_allclose, assert_array_equal

onnx = pytest.importorskip("onnx", reason="needs the extra export")
from onnx import TensorProto, helper  # noqa: E402 - only once it is sure that there is one

ROWS = np.random.default_rng(0).random((41, 12))
W = np.random.default_rng(1).normal(size=(12, 6)).astype(np.float32)


def graph(
    path: Path, *, rows: Any = "n", shape: tuple[int, ...] = (12,), outputs: int = 1, kind: int = TensorProto.FLOAT
) -> Path:
    """relu(x w) of flattened rows, written to a file."""
    w = np.resize(W, (int(np.prod(shape)), 6))
    names = [f"y{k}" for k in range(outputs)]
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["h"]),
        *(helper.make_node("Relu", ["h"], [name]) for name in names),
    ]
    made = helper.make_graph(
        nodes,
        "relu",
        [helper.make_tensor_value_info("x", kind, [rows, *shape])],
        [helper.make_tensor_value_info(name, kind, [rows, 6]) for name in names],
        [helper.make_tensor("w", kind, w.shape, w.ravel().tolist())],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("rows", ["n", 1, 5])
@pytest.mark.parametrize("shape", [(12,), (3, 2, 2)])
def test_features_do_not_depend_on_where_a_row_stands(tmp_path: Path, rows: Any, shape: tuple[int, ...]) -> None:
    features = OnnxMap(graph(tmp_path / "relu.onnx", rows=rows, shape=shape), shape)
    assert (features.provenance, features.width) == ("unknown", 6)
    assert_allclose(features(ROWS), np.maximum(ROWS.astype(np.float32) @ W, 0), atol=1e-5)
    assert_array_equal(features(ROWS), np.concatenate([features(part) for part in np.split(ROWS, [1, 20])]))
    assert features(ROWS[:0]).shape == (0, 6)


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    path = graph(tmp_path / "relu.onnx")
    assert OnnxMap(path, (12,)).digest == hashlib.sha256(path.read_bytes()).hexdigest()


def torn(path: Path) -> Path:
    path.write_bytes(b"no model")
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path, r"m\.onnx: No such file"),
        (lambda path: path.parent, r"Is a directory"),
        (torn, r"m\.onnx: not an ONNX model that runs here"),
        (lambda path: graph(path, shape=(7,)), r"takes tensor\(float\) \[.*7\], not rows of shape \(12,\)"),
        (lambda path: graph(path, shape=(3, 2, 2)), r"takes tensor\(float\) .* not rows of shape"),
        (lambda path: graph(path, kind=TensorProto.DOUBLE), r"takes tensor\(double\)"),
        (lambda path: graph(path, outputs=2), r"has 1 inputs and 2 outputs, expected one of each"),
    ],
)
def test_what_cannot_work_is_one_line(tmp_path: Path, make: Any, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = make(tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=words) as fault:
        OnnxMap(path, (12,))
    assert "\n" not in str(fault.value)
    spec = dw.StreamSpec("s", tuple(dw.Column(f"c{j}") for j in range(12)), classes=("a", "b"))
    with pytest.raises(dw.InputError, match="backbone onnx:"):
        dw.learner("acu", spec, backbone=f"onnx:{path}")
    assert capfd.readouterr().err == ""


def test_a_run_on_an_onnx_backbone_says_so_in_its_receipt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = graph(tmp_path / "relu.onnx")
    lines = [",".join([*map(str, row.round(5)), "yn"[int(row[0] > 0.5)]]) for row in ROWS]
    (tmp_path / "t.csv").write_text("\n".join([",".join([*(f"c{j}" for j in range(12)), "y"]), *lines]) + "\n")
    out = tmp_path / "run"
    settings = ["--set", f"backbone=onnx:{path}", "--set", "width=16", "--batch", "8"]
    assert cli.main(["run", str(tmp_path / "t.csv"), "--learner", "acu", *settings, "--out", str(out)]) == 0
    capsys.readouterr()
    assert cli.main(["forget", str(out), "--ids", "3,17", "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)
    assert entry["certificate"]["features"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert entry["certificate"]["provenance"] == "unknown"
    assert "not exact" in entry["guarantee"]
    graph(path, outputs=1, rows=5)  # another file under the same name
    assert cli.main(["forget", str(out), "--ids", "4"]) == 2
    assert "the backbone is not the one that the state was made with" in capsys.readouterr().err
