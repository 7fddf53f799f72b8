"""DriftMoE and Hoeffding trees in a bundle, without Numba, beside the compiled learners: answers and arrays."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt.cli import main
from driftway.adapt.edge.driftmoe import FOLDER, parts
from driftway.adapt.edge.runner import BundleError, Runner
from driftway.adapt.edge.runner import main as run
from driftway.models.hoeffding import IS_LEAF, KIND
from numpy.testing import assert_allclose, assert_array_equal

COLUMNS = (dw.Column("price"), dw.Column("place", ("top", "left", "foot")), dw.Column("age"), dw.Column("size"))
SPEC = dw.StreamSpec("offers", COLUMNS, classes=("no", "yes", "later"))
ALERT = {"warning": 0.6, "drift": 0.5}
SMALL = {"generalists": 2, "specialists": 3, "hidden": 8, "router_batch": 8, "grace": 15.0, "poisson": 2.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "data": ("driftmoe", {**SMALL, **ALERT}),
    "odd settings": ("driftmoe", {**SMALL, "noise": True, "contrast": True, "balance": True, "scale": False}),
    "vote": ("driftmoe", {**SMALL, "answer": "vote", "hidden": 3, "linear_rates": (), "floor": 0.0}),
    "data as published": ("driftmoe", {"faithful": True}),
    "task": ("driftmoe", {"variant": "task", "hidden": 8, "grace": 15.0}),
    "task as published": ("driftmoe", {"variant": "task", "faithful": True}),
    "tree": ("hoeffding-tree", {"grace": 10.0, "delta": 0.3, "tau": 0.3, "leaf": "bayes"}),
    "guarded tree": ("hoeffding-tree", {"grace": 10.0, "delta": 0.3, "tau": 0.3, "adaptive": True, **ALERT}),
}
ROWS = {"data as published": 150, "task as published": 60}
WITHOUT = """
import runpy, sys
class Missing:
    def find_spec(self, name, *more):
        if name.partition(".")[0] in ("torch", "numba", "onnxruntime", "driftway", "scipy", "safetensors"):
            raise ImportError(name)
sys.meta_path.insert(0, Missing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def device(bundle: Path, **more: Any) -> Runner:
    """The bundle as it runs where there is no Numba; the learners beside it are compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "numba", None)
        return Runner(bundle, **more)


def batch(n: int, seed: int = 0) -> dw.Batch:
    """Three classes that mean something else every 80 rows; gaps, and noise that no rule tells."""
    rng = np.random.default_rng(seed)
    x = np.c_[rng.normal(3, 2, n), rng.integers(0, 3, n), rng.normal(0, 1, (n, 2))]
    side = (x[:, 0] > 3).astype(np.int64) + (x[:, 1] == 1)
    y = (side + np.arange(n) // 80) % 3
    y[rng.random(n) < 0.05] = 0
    x[rng.random(x.shape) < 0.05] = np.nan
    return dw.Batch(np.arange(n), x, 0.0, y)


def bundled(learner: dw.Learner, place: Path) -> Runner:
    return device(dw.export(learner, learner.spec, place))


def assert_same_state(runner: Runner, learner: dw.Learner) -> None:
    """Whole numbers and the router to the bit, the rest to rounding."""
    held = parts(learner)[2]
    assert runner.now.keys() == held.keys()
    for name, array in runner.now.items():
        if array.dtype.kind == "i" or array.dtype == np.float32:
            assert_array_equal(array, held[name], name)
        else:
            assert_allclose(array, held[name], rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_row_after_row_as_the_compiled_learner(case: str, tmp_path: Path) -> None:
    """Exported before the first row; splits, drifts and Poisson draws come out alike."""
    name, settings = CASES[case]
    rows, learner = batch(ROWS.get(case, 250)), dw.learner(name, SPEC, seed=5, **settings)
    runner, said = bundled(learner, tmp_path / "bundle"), []
    for i, x in enumerate(rows.x):
        said.append(runner.adapt(x, [i])[0])
        assert runner.label([i], [int(rows.y[i])]) == 1  # type: ignore[index]
    before = learner.test_then_train(rows)
    assert_allclose(said, before.scores, atol=1e-9)
    assert_array_equal(np.argmax(said, 1), before.output)
    assert_same_state(runner, learner)
    assert learner.telemetry()["resets"] >= 1 or "warning" not in settings
    assert (runner.now["forest.node"][:, KIND] != IS_LEAF).any() or "published" in case


def test_late_labels_teach_with_what_was_known_when_the_row_came(tmp_path: Path) -> None:
    rows, learner = batch(180), dw.learner("driftmoe", SPEC, seed=1, **SMALL)
    learner.test_then_train(rows.rows(slice(0, 60)))
    runner = bundled(learner, tmp_path / "bundle")
    for at in range(60, 180, 20):
        few = rows.rows(slice(at, at + 20))
        prediction = learner.predict(few)
        assert_allclose(runner.adapt(few.x, few.ids.tolist()), prediction.scores, atol=1e-9)
        learner.learn(few, prediction)
        runner.label(few.ids.tolist(), few.y.tolist())  # type: ignore[union-attr]
    assert_same_state(runner, learner)


# --- on a device ------------------------------------------------------------------------------------------------


@pytest.fixture(name="made", scope="module")
def made_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a learner that has met 100 rows, beside the next 120 and what the learner says of them."""
    folder, rows = tmp_path_factory.mktemp("driftmoe"), batch(220)
    learner = dw.learner("driftmoe", SPEC, seed=2, **SMALL)
    learner.test_then_train(rows.rows(slice(0, 100)))
    dw.export(learner, SPEC, folder / "bundle", name="driftmoe")
    rest = rows.rows(slice(100, 220))
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(c.name for c in COLUMNS), "class"])
        for x, y in zip(rest.x, rest.y, strict=True):  # type: ignore[arg-type]
            cells = ["" if np.isnan(v) else repr(float(v)) for v in x]
            place = cells[1] and COLUMNS[1].categories[int(float(cells[1]))]  # type: ignore[index]
            writer.writerow([cells[0], place, *cells[2:], SPEC.classes[y]])  # type: ignore[index]
    answers = learner.test_then_train(rest).output
    (folder / "answers.json").write_text(json.dumps([SPEC.classes[a] for a in answers]))  # type: ignore[index]
    return folder


@pytest.fixture(name="mine")
def mine_fixture(made: Path, tmp_path: Path) -> Path:
    """A copy, to be written to and spoilt."""
    return Path(shutil.copytree(made, tmp_path / "mine"))


def alone(folder: Path, *more: str) -> list[str]:
    """A command that runs the bundle where nothing but NumPy can be imported."""
    files = ["--input", str(folder / "rows.csv"), "--output", str(folder / "predictions.csv"), "--label", "class"]
    return [sys.executable, "-B", "-c", WITHOUT, str(folder / "bundle" / "run.py"), *files, *more]


def test_it_needs_numpy_and_nothing_else(mine: Path) -> None:
    done = subprocess.run(alone(mine), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with (mine / "predictions.csv").open() as file:
        assert [row["answer"] for row in csv.DictReader(file)] == json.loads((mine / "answers.json").read_text())


def test_killed_it_goes_on_from_the_last_saved_row(mine: Path) -> None:
    assert subprocess.run(alone(mine), check=False).returncode == 0
    whole, state = (mine / "predictions.csv").read_bytes(), mine / "bundle" / "adapted.npz"
    state.unlink()
    process = subprocess.Popen(alone(mine, "--every", "10"))
    while not state.exists():
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert device(mine / "bundle", state=state).counts["rows"] in range(10, 121)
    assert subprocess.run(alone(mine), check=False).returncode == 0
    assert (mine / "predictions.csv").read_bytes() == whole


def test_a_state_of_a_grown_forest_comes_back(tmp_path: Path) -> None:
    rows, one = batch(30, seed=3), bundled(dw.learner("driftmoe", SPEC, **SMALL), tmp_path / "bundle")
    before = one.now["forest.leaf"].shape
    one.learn(rows.x, rows.y)
    one.save(tmp_path / "state.npz")
    other = device(tmp_path / "bundle", state=tmp_path / "state.npz")
    assert other.now["forest.leaf"].shape > before
    assert_array_equal(one.predict(rows.x), other.predict(rows.x))


def test_an_altered_source_is_refused_in_one_line(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = mine / "bundle" / FOLDER / "models" / "router.py"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(BundleError, match=r"router\.py was altered"):
        device(mine / "bundle")
    assert run(["--bundle", str(mine / "bundle"), "--input", str(mine / "rows.csv")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_code_that_no_category_can_have_counts_as_missing(made: Path) -> None:
    runner = device(made / "bundle")
    found = runner.predict([[1.0, code, 0.5, 0.5] for code in (1e300, -1e19, np.nan)])
    assert_array_equal(found[:2], found[[2, 2]])
    assert np.isfinite(found).all()


def test_a_row_that_is_none_is_refused_and_teaches_nothing(made: Path) -> None:
    runner = device(made / "bundle")
    before = {name: array.copy() for name, array in runner.now.items()}
    rows = [[np.inf, 1.0, 0.5, 0.5], [0.5, 1.0, 0.5, 0.5]]
    assert_array_equal(np.isnan(runner.adapt(rows, [1, 2])).all(1), [True, False])
    assert runner.label([1], [0]) == 0
    for some in (rows, rows[:1]):
        with pytest.raises(BundleError, match="refused to learn, nothing was changed"):
            runner.learn(some, [0] * len(some))
    for name, array in runner.now.items():
        assert_array_equal(array, before[name], name)


def test_weights_are_kept_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(dw.InputError, match="float32"):
        dw.export(dw.learner("driftmoe", SPEC, **SMALL), SPEC, tmp_path / "bundle", weights="int8")
    assert list(tmp_path.iterdir()) == []


def test_in_the_loop_it_answers_as_the_learner_would(made: Path) -> None:
    device(made / "bundle")  # from here on without Numba in this process
    edge = dw.learner(f"edge:{made / 'bundle'}", SPEC)
    said = edge.test_then_train(batch(220).rows(slice(100, 220))).output
    assert [SPEC.classes[a] for a in said] == json.loads((made / "answers.json").read_text())  # type: ignore[index]


def test_a_run_is_exported_and_runs_on_in_the_loop(tmp_path: Path) -> None:
    stream = ["sea-drift", "--limit", "150", "--set", "generalists=2", "--set", "hidden=4"]
    assert main(["run", *stream, "--learner", "driftmoe", "--out", str(tmp_path / "run")]) == 0
    assert main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "bundle")]) == 0
    assert sorted(os.listdir(tmp_path / "bundle")) == ["bundle.json", FOLDER, "run.py", "state.safetensors"]
    device(tmp_path / "bundle")
    bundle = ["sea-drift", "--limit", "100", "--learner", f"edge:{tmp_path / 'bundle'}"]
    assert main(["run", *bundle, "--out", str(tmp_path / "again")]) == 0
