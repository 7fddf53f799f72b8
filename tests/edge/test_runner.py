"""The runner alone: what it answers, what it refuses, how it saves, how it goes on."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.edge.runner import BINDINGS, BundleError, Runner, main
from driftway.adapt.edge.steps import steps_of
from driftway.adapt.learners.test_time_recipes import Mixture
from numpy.testing import assert_array_equal


@pytest.fixture(name="mine")
def mine_fixture(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be written to and spoilt."""
    return Path(shutil.copytree(bundle, tmp_path / "mine"))


def rows(n: int, seed: int = 0) -> np.ndarray:
    found: np.ndarray = np.random.default_rng(seed).random((n, 64), np.float32)
    return found


def table(path: Path, n: int, seed: int = 0) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([f"x{j}" for j in range(64)])
        writer.writerows([f"{v:.6g}" for v in row] for row in rows(n, seed))
    return path


# --- answers and steps ------------------------------------------------------------------------------------------


def test_predicting_changes_nothing_and_adapting_moves(bundle: Path) -> None:
    runner = Runner(bundle)
    before = {k: v.copy() for k, v in runner.now.items()}
    first = runner.predict(rows(3))
    assert_array_equal(first, runner.predict(rows(3)))
    assert all(np.array_equal(v, before[k]) for k, v in runner.now.items())
    np.testing.assert_allclose(runner.adapt(rows(3)), first, atol=1e-6)
    assert all(not np.array_equal(v, before[k]) for k, v in runner.now.items())
    assert np.abs(runner.predict(rows(3)) - first).max() > 1e-4
    assert runner.counts["steps"] == 1


def test_a_step_ahead_counts_only_when_it_is_committed(bundle: Path) -> None:
    one, other = Runner(bundle), Runner(bundle)
    one.predict(rows(4), ahead=True)
    one.predict(rows(4, 1), ahead=True)
    one.predict(rows(2, 2))  # which changes nothing, that step included
    one.commit()
    other.adapt(rows(4, 1))
    assert all(np.array_equal(v, other.now[k]) for k, v in one.now.items())
    one.commit()
    assert one.counts["steps"] == 1


def test_nothing_is_made_anew_from_step_to_step(bundle: Path) -> None:
    runner = Runner(bundle)
    for i in range(16):
        runner.adapt(rows(1, i))
    places = {id(v) for s in (runner.now, runner.spare) for v in s.values()}
    ready = len(runner._bound)
    for i in range(50):
        runner.adapt(rows(1, i))
    assert {id(v) for s in (runner.now, runner.spare) for v in s.values()} == places
    assert len(runner._bound) == ready == 3  # every eighth step, of one parity, asks the state at export too


def test_rows_of_any_number_and_order_are_answered_by_few_bindings(bundle: Path) -> None:
    runner = Runner(bundle)
    for n in range(1, 80):
        assert_array_equal(runner.predict(np.asfortranarray(rows(n))), runner.predict(rows(n)))
    assert len(runner._bound) <= BINDINGS


def test_rows_that_cannot_be_ones_do_not_reach_the_graph(bundle: Path) -> None:
    runner, clean = Runner(bundle), Runner(bundle)
    x = rows(5)
    x[1, 7], x[3, 0] = np.nan, np.inf
    scores = runner.adapt(x, range(5))
    assert np.isnan(scores).all(1).tolist() == [False, True, False, True, False]
    assert_array_equal(scores[[0, 2, 4]], clean.adapt(x[[0, 2, 4]]))
    assert (runner.counts["rows"], runner.counts["refused"]) == (5, 2)
    before = {k: v.copy() for k, v in runner.now.items()}
    assert np.isnan(runner.adapt(np.full((2, 64), np.nan))).all()
    assert runner.adapt(np.zeros((0, 64))).shape == (0, 6)
    assert all(np.array_equal(v, before[k]) for k, v in runner.now.items())
    for wrong in (np.zeros((2, 63)), "nonsense"):
        with pytest.raises(BundleError):
            runner.adapt(wrong)


def test_what_is_not_finite_does_not_count(bundle: Path) -> None:
    runner = Runner(bundle)
    runner.predict(rows(2), ahead=True)
    before = {k: v.copy() for k, v in runner.now.items()}
    runner.spare["moving"][0] = np.inf
    runner.commit()
    assert all(np.array_equal(v, before[k]) for k, v in runner.now.items())
    assert runner.counts["rollbacks"] == 1


def test_the_guard_compares_with_the_state_at_export(bundle: Path) -> None:
    runner = Runner(bundle)
    runner.about["guard"] = {"window": 64, "share": 0.5, "every": 1}
    spread, one = np.eye(6)[np.arange(8) % 4], np.eye(6)[[1] * 8]
    for answers, source, rollbacks in ((spread, spread, 0), (one, spread, 1), (one, one, 1), (spread[:, ::-1], one, 1)):
        for _ in range(8):
            assert runner.seen.sum() < 128
            runner._guard(answers, source)
        assert runner.counts["rollbacks"] == rollbacks
        assert not runner.seen.any()


def test_after_a_collapse_the_last_good_state_comes_back_and_then_the_exported_one(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner(bundle)
    runner.about["guard"] = {"window": 16, "share": 0.9, "every": 1}
    run = runner._run

    def one_class(verb: str, given: Any, state: Any) -> Any:
        answers = run(verb, given, state)
        answers["scores"][:] = np.eye(6)[0 if state is runner.now else np.arange(8) % 6]
        return answers

    monkeypatch.setattr(runner, "_run", one_class)
    good = {k: v + 1 for k, v in runner.now.items()}
    runner.good = {k: v.copy() for k, v in good.items()}
    for expected in (good, runner.exported):
        for i in range(2):
            runner.adapt(rows(8, i))
        assert all(np.array_equal(v, expected[k]) for k, v in runner.now.items())
    assert runner.counts["rollbacks"] == 2


def test_asking_the_state_at_export_changes_nothing(bundle: Path) -> None:
    asking, free = Runner(bundle), Runner(bundle)
    asking.about["guard"].update(every=1, share=0.0)
    free.about["guard"]["every"] = 10**9
    for i in range(6):
        assert_array_equal(asking.adapt(rows(2, i)), free.adapt(rows(2, i)))
    assert_array_equal(asking.now["moving"], free.now["moving"])


def test_a_healthy_run_is_left_alone_where_rows_come_class_by_class(bundle: Path) -> None:
    runner, free = Runner(bundle), Runner(bundle)
    free.about["guard"]["every"] = 10**9
    x = rows(600, 3)
    x = x[np.argsort(free.predict(x).argmax(1), kind="stable")]
    for i in range(0, 600, 2):
        assert_array_equal(runner.adapt(x[i : i + 2]), free.adapt(x[i : i + 2]))
    assert runner.counts["rollbacks"] == 0
    assert not np.array_equal(runner.good["moving"], runner.exported["moving"])  # there was a good state


# --- files ------------------------------------------------------------------------------------------------------


def test_a_saved_state_goes_on_where_it_was(bundle: Path, tmp_path: Path) -> None:
    whole, half = Runner(bundle), Runner(bundle)
    for i in range(6):
        whole.adapt(rows(1, i), [i])
    for i in range(3):
        half.adapt(rows(1, i), [i])
    half.save(tmp_path / "saved")
    rest = Runner(bundle, state=tmp_path / "saved")
    for i in range(3, 6):
        rest.adapt(rows(1, i), [i])
    assert all(np.array_equal(v, whole.now[k]) for k, v in rest.now.items())
    assert rest.counts == whole.counts
    assert_array_equal(rest.seen, whole.seen)


@pytest.mark.parametrize("name", ["adapt.onnx", "state.safetensors", "bundle.json", "run.py"])
def test_an_altered_bundle_is_refused(mine: Path, name: str) -> None:
    body = bytearray((mine / name).read_bytes())
    body[len(body) // 2] ^= 1
    (mine / name).write_bytes(bytes(body))
    with pytest.raises(BundleError, match=r"altered|no edge bundle"):
        Runner(mine)


def test_a_torn_altered_or_foreign_state_is_refused(bundle: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    Runner(bundle).save(saved)
    whole = saved.read_bytes()
    with np.load(saved) as found:
        assert_array_equal(found["now.moving"], Runner(bundle).now["moving"])
    altered = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(0, len(whole), 97)]
    for body in (whole[:-3], whole[: len(whole) // 2], b"", b"nonsense", *altered):
        saved.write_bytes(body)
        with pytest.raises(BundleError, match=r"no state to go on from .* delete it") as caught:
            Runner(bundle, state=saved)
        assert "\n" not in str(caught.value)
    other = Runner(bundle)
    other.about["sha256"] = "another"
    other.save(saved)
    with pytest.raises(BundleError, match="another bundle"):
        Runner(bundle, state=saved)


# --- the command line -------------------------------------------------------------------------------------------


def test_a_file_is_answered_and_a_second_run_has_nothing_to_do(mine: Path, tmp_path: Path) -> None:
    source, out = table(tmp_path / "stream.csv", 30), tmp_path / "out.csv"
    argv = ["--bundle", str(mine), "--input", str(source), "--output", str(out), "--batch", "4", "--every", "8"]
    assert main(argv) == 0
    answers = list(csv.DictReader(out.read_text().splitlines()))
    runner = Runner(mine, state=mine / "nothing")
    expected = [runner.answer(s)[0] for i in range(0, 30, 4) for s in runner.adapt(_read(source)[i : i + 4])]
    assert [a["answer"] for a in answers] == expected
    first = out.read_bytes()
    assert main(argv) == 0
    assert out.read_bytes() == first


def _read(path: Path) -> Any:
    return np.loadtxt(path, delimiter=",", skiprows=1)


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import run
bundle, folder = Path(sys.argv[1]), Path(sys.argv[2])
state, out = folder / "state", folder / "out.csv"
argv = ["--bundle", str(bundle), "--input", str(folder / "rows.npz"), "--every", "30", "--state", str(state)]

def child():
    number = os.fork()
    if not number:
        os._exit(run.main([*argv, "--output", str(out)]))
    return number

assert os.waitpid(child(), 0)[1] == 0
whole = out.read_bytes()
state.unlink()
kills, moments, resumed = 0, random.Random(0), set()
while kills < 50:
    number, sizes, blocks, done = child(), {out.stat().st_size}, moments.randrange(4), 0
    while len(sizes) <= blocks and not done:
        time.sleep(0.0002)
        sizes.add(out.stat().st_size)
        done, status = os.waitpid(number, os.WNOHANG)
    if not done:
        time.sleep(0.02 * moments.random())
        os.kill(number, signal.SIGKILL)
        _, status = os.waitpid(number, 0)
    if os.WIFEXITED(status):  # it was done before
        assert status == 0 and out.read_bytes() == whole
        state.unlink()
        continue
    kills += 1
    if state.exists():
        resumed.add(run.Runner(bundle, state=state).counts["rows"])
assert os.waitpid(child(), 0)[1] == 0
assert out.read_bytes() == whole
print(len(resumed))
"""


def test_killed_at_fifty_moments_it_ends_as_if_it_had_not_been(mine: Path, tmp_path: Path) -> None:
    """Each child is killed a random while after it wrote up to three more blocks, however long these take it."""
    np.savez(tmp_path / "rows.npz", x=rows(1200))
    argv = [sys.executable, "-c", KILLED, str(mine), str(tmp_path)]
    done = subprocess.run(argv, cwd=mine, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 3  # different places to go on from


def test_lines_of_json(mine: Path) -> None:
    lines = [
        {"id": 1, "x": rows(1)[0].tolist()},
        {"id": 5, "x": [None, *rows(1)[0, 1:].tolist()]},
        {"id": 2, "x": [1, 2]},
        {"id": 1, "y": "a"},
        {"forget": [1]},
        {"save": True},
    ]
    text = "\n".join([*map(json.dumps, lines), "nonsense"])
    argv = [sys.executable, str(mine / "run.py"), "--input", "-"]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=True)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert said[0]["answer"] in "abcdef"
    assert 0 < said[0]["score"] <= 1
    assert said[1] == {"id": 5, "answer": None, "score": None}
    assert said[3] == {"id": 1, "learnt": 0}
    assert [("error" in s) for s in said] == [False, False, True, False, True, False, True]
    assert (mine / "adapted.npz").exists()


def test_mistakes_are_one_line(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thin.csv").write_text("x0,x1\n1,2\n")
    (tmp_path / "torn.npz").write_bytes(b"PK\3\4")
    whole = table(tmp_path / "whole.csv", 2)
    for argv in (
        ["--bundle", str(tmp_path), "--input", "-"],
        ["--bundle", str(mine), "--input", str(tmp_path / "none.csv"), "--output", str(tmp_path / "o")],
        ["--bundle", str(mine), "--input", str(tmp_path / "thin.csv"), "--output", str(tmp_path / "o")],
        ["--bundle", str(mine), "--input", str(tmp_path / "torn.npz"), "--output", str(tmp_path / "o")],
        ["--bundle", str(mine), "--input", str(whole), "--label", "y", "--output", str(tmp_path / "o")],
    ):
        assert main(argv) == 2
        told = capsys.readouterr().err
        assert told.startswith("run.py: error: ")
        assert told.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_it_is_one_short_file_that_imports_numpy_and_onnxruntime_alone(mine: Path) -> None:
    assert len((mine / "run.py").read_text().splitlines()) < 400
    code = "import sys, run; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=mine, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "driftway", "safetensors", "onnx", "numba", "scipy"}


# --- in the loop ------------------------------------------------------------------------------------------------


def test_a_bundle_is_a_learner(bundle: Path, make: Any) -> None:
    ours = make(Mixture(rho=0.05, alpha=0.4, lr=0.01))
    edge = dw.learner(f"edge:{bundle}", ours.spec)
    for i in range(5):
        batch = dw.Batch(np.arange(3) + 3 * i, rows(3, i).astype(np.float64), float(i))
        said, theirs = edge.predict(batch), ours.predict(batch)
        np.testing.assert_allclose(said.scores, theirs.scores, atol=1e-5)  # type: ignore[arg-type]
        edge.adapt(batch, said)
        ours.adapt(batch, theirs)
    kept = edge.state()
    other = dw.learner(f"edge:{bundle}", ours.spec)
    other.load(kept)
    assert math.isclose(other.telemetry()["steps"], 5)
    assert_array_equal(other.predict(batch).scores, edge.predict(batch).scores)  # type: ignore[arg-type]


def test_over_many_steps_it_stays_as_near_to_double_precision_as_pytorch(bundle: Path, make: Any) -> None:
    eager, double = (make(Mixture(rho=0.05, alpha=0.4, lr=0.01)) for _ in range(2))
    runner = Runner(bundle)
    double.net.double()
    double.source = {n: w.double() for n, w in double.source.items()}
    steps = steps_of(double)
    verb, exact = steps.verbs["adapt"], list(steps.state.values())
    apart = np.zeros((200, 2))
    for i in range(len(apart)):
        batch = dw.Batch(np.arange(1) + i, rows(1, i).astype(np.float64), float(i))
        with torch.no_grad():
            scores, _, *exact = verb.module(torch.from_numpy(batch.x), *exact)
        said = eager.predict(batch)
        eager.adapt(batch, said)
        apart[i] = [np.abs(z - scores.numpy()).max() for z in (runner.adapt(batch.x), said.scores)]
    mine, its = apart.max(0)
    assert runner.counts["steps"] == len(apart)
    assert mine <= 3 * its + 1e-6


def test_a_bundle_of_another_stream_is_refused(bundle: Path) -> None:
    with pytest.raises(dw.InputError, match="other classes"):
        dw.learner(f"edge:{bundle}", dw.stream("digits-c").spec)
    with pytest.raises(dw.InputError, match="columns"):
        dw.learner(f"edge:{bundle}", dw.stream("two-regimes").spec)
    with pytest.raises(dw.InputError, match="holds no edge bundle"):
        dw.learner("edge:nowhere", dw.stream("digits-c").spec)
    with pytest.raises(dw.InputError, match="edge:FOLDER"):
        dw.learner("edge", dw.stream("digits-c").spec)
