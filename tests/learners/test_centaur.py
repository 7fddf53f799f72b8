"""Centaur on driving scenes and on classes: what the loop may rely on, controls, and the two-minute check in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.learners import learner_params, make_learner
from driftway.adapt.learners.centaur import Centaur
from driftway.adapt.learners.test_time import TestTimeLearner
from driftway.adapt.learners.test_time_parts import ClusterEntropyObjective
from driftway.adapt.source_planner import PlannerTraining, source_planner
from driftway.adapt.state import all_finite, copy_state, digest, join, split
from driftway.models.cluster_entropy import ClusterEntropy
from driftway.models.planner import Planner
from driftway.streams.pdm import Scores

SMALL = {"scenes": 12, "plans": 32, "training": 160}


@pytest.fixture(scope="module")
def stream() -> Any:
    return dw.stream("driving", **SMALL)


@pytest.fixture(scope="module")
def planner(stream: Any) -> Planner:
    training = PlannerTraining(steps=120, batch=32, width=32)
    return source_planner(stream.spec, training, keep=False, progress=lambda _: None)


def frames(stream: Any, scenes: int = 12) -> list[dw.Batch]:
    stream.seek({})
    return [e for e in stream if isinstance(e, dw.Batch)][: 5 * scenes]


def learner(stream: Any, planner: Planner, objective: str = "cluster", **settings: Any) -> Centaur:
    return Centaur(stream.spec, Centaur.Params(objective=objective, **settings), planner=planner)


def drive(one: dw.Learner, batches: list[dw.Batch]) -> list[dw.Prediction]:
    found = []
    for batch in batches:
        found.append(one.predict(batch))
        one.adapt(batch, found[-1])
    return found


def same(a: list[dw.Prediction], b: list[dw.Prediction]) -> bool:
    return all(np.array_equal(p.scores, q.scores) and p.output == q.output for p, q in zip(a, b, strict=True))


# --- what the loop relies on --------------------------------------------------------------------------------------


def test_predict_changes_nothing_and_repeats(stream: Any, planner: Planner) -> None:
    one, batches = learner(stream, planner, delta=0.05), frames(stream, 2)
    drive(one, batches[:7])
    before = digest(one.state())
    assert same([one.predict(batches[7])], [one.predict(batches[7])])
    assert digest(one.state()) == before
    assert all_finite(copy_state(one.state())) is None


def test_saved_loaded_and_continued(stream: Any, planner: Planner) -> None:
    batches = frames(stream, 4)
    straight, other = learner(stream, planner, delta=0.05), learner(stream, planner, delta=0.05)
    expected = drive(straight, batches)
    first = learner(stream, planner, delta=0.05)
    drive(first, batches[:8])
    drive(other, batches[3:5])
    skeleton, arrays = split(first.state())
    other.load(join(json.loads(json.dumps(skeleton)), {k: np.array(v) for k, v in arrays.items()}))
    assert digest(other.state()) == digest(first.state())
    assert same(drive(other, batches[8:]), expected[8:])
    assert digest(other.state()) == digest(straight.state())


def test_loading_another_planner_takes_it_over(stream: Any, planner: Planner) -> None:
    batches = frames(stream, 2)
    other = Planner(stream.spec.worth.vocabulary, stream.spec.worth.layout, 32, seed=9)
    one, mine = learner(stream, other, delta=0.05), learner(stream, planner, delta=0.05)
    one.load(mine.state())
    assert same(drive(one, batches), drive(mine, batches))


def test_what_adaptation_moved_can_be_put_back(stream: Any, planner: Planner) -> None:
    batches = frames(stream, 2)
    one = learner(stream, planner, delta=0.05)
    drive(one, batches[:4])
    kept = copy_state(one.adapted())
    expected = one.predict(batches[4])
    drive(one, batches[4:9])
    one.restore(kept)
    assert same([one.predict(batches[4])], [expected])
    one.gentler()
    assert one.training.delta == 0.025
    assert one.facts()["step_length"] == pytest.approx(0.025 * one.training.length)


def test_threads_and_none_give_the_same_plans(stream: Any, planner: Planner) -> None:
    batches = frames(stream, 5)
    plain = learner(stream, planner, delta=0.05, background="no")
    threaded = learner(stream, planner, delta=0.05, background="wait")
    assert same(drive(plain, batches), drive(threaded, batches))
    assert digest(plain.state()) == digest(threaded.state())
    assert plain.telemetry() == threaded.telemetry()


def test_broken_rows_leave_it_whole(stream: Any, planner: Planner) -> None:
    one, batches = learner(stream, planner, delta=0.05), frames(stream, 2)
    for bad in (np.nan, np.inf, 1e30):
        prediction = drive(one, [dw.Batch(np.array([0]), np.full((1, 62), bad), 0.0)])[0]
        assert prediction.scores is not None
        assert np.isfinite(prediction.scores).all()
    assert all_finite(one.state()) is None
    again = learner(stream, planner, delta=0.05)
    assert same(drive(one, batches[5:]), drive(again, batches[5:]))


# --- invariants of the note -----------------------------------------------------------------------------------------


def test_none_and_no_length_are_the_trained_planner(stream: Any, planner: Planner) -> None:
    batches = frames(stream, 3)
    rows = torch.from_numpy(np.concatenate([b.x for b in batches]).astype(np.float32))
    expected = [int(planner(x[None]).argmax()) for x in rows]
    for one in (learner(stream, planner, "none"), learner(stream, planner, delta=0.0)):
        assert [int(p.output[0]) for p in drive(one, batches)] == expected


def test_first_frame_of_a_scene_is_the_trained_planner(stream: Any, planner: Planner) -> None:
    one, batches = learner(stream, planner, delta=0.1), frames(stream, 3)
    answers = drive(one, batches)
    differ = [not np.array_equal(p.scores, one.source_scores(b)) for p, b in zip(answers, batches)]
    assert not any(differ[::5])
    assert all(differ[1::5])


def test_trained_weights_are_untouched(stream: Any, planner: Planner) -> None:
    before = digest(dict(planner.state_dict()))
    for mode in ("episodic", "accumulate"):
        drive(learner(stream, planner, delta=0.1, mode=mode), frames(stream, 2))
    assert digest(dict(planner.state_dict())) == before
    assert all(p.grad is None for p in planner.parameters())


def test_rows_of_one_batch_are_planned_before_any_is_learnt_from(stream: Any, planner: Planner) -> None:
    one, batches = learner(stream, planner, delta=0.1), frames(stream, 1)
    whole = dw.Batch(np.arange(5), np.concatenate([b.x for b in batches]), 0.0)
    prediction = one.predict(whole)
    one.adapt(whole, prediction)
    assert prediction.scores is not None
    np.testing.assert_array_equal(prediction.scores, one.source_scores(whole))
    assert one.telemetry()["steps"] == 5


# --- controls -------------------------------------------------------------------------------------------------------


def moved(one: Centaur) -> torch.Tensor:
    one.training.settle()
    assert one.training.memory.moved is not None
    return one.training.memory.moved


def test_controls_have_the_same_length(stream: Any, planner: Planner) -> None:
    found = {}
    for objective in ("cluster", "ascent", "random"):
        one = learner(stream, planner, objective, delta=0.01)
        drive(one, frames(stream, 1)[:4])
        found[objective] = moved(one)
    torch.testing.assert_close(found["ascent"], -found["cluster"])
    assert float(found["random"].norm()) == pytest.approx(float(found["cluster"].norm()), rel=1e-4)
    cosine = torch.cosine_similarity(found["random"], found["cluster"], dim=0)
    assert abs(float(cosine)) < 0.1


def test_shuffled_clusters_have_the_same_sizes(stream: Any, planner: Planner) -> None:
    plain, shuffled = learner(stream, planner), learner(stream, planner, "shuffled")
    assert sorted(plain.facts()["cluster_sizes"]) == sorted(shuffled.facts()["cluster_sizes"])
    assert isinstance(shuffled.measure, ClusterEntropy)
    assert isinstance(plain.measure, ClusterEntropy)
    assert not torch.equal(plain.measure.cluster_ids, shuffled.measure.cluster_ids)  # type: ignore[arg-type]
    assert len(learner(stream, planner, "cluster6").facts()["cluster_sizes"]) == 6


def test_fallback_brakes_where_it_doubts(stream: Any, planner: Planner) -> None:
    always, never = (learner(stream, planner, "fallback", brake=q) for q in (0.0, 1.0))
    batches = frames(stream, 4)
    braked = drive(always, batches)
    assert always.telemetry()["braked"] > 10
    assert never.telemetry()["braked"] <= always.telemetry()["braked"]
    far = np.hypot(*stream.spec.worth.vocabulary[:, -1, :2].T)
    plain = drive(learner(stream, planner, "none"), batches)
    gone = [np.mean([far[int(p.output[0])] for p in found]) for found in (braked, plain)]
    assert gone[0] < gone[1]


def test_trigger_is_a_quantile_of_clean_scenes(stream: Any, planner: Planner) -> None:
    always, rarely = (learner(stream, planner, trigger=q) for q in (0.0, 1.0))
    for one in (always, rarely):
        drive(one, frames(stream, 6))
    assert always.training.trigger is None
    assert rarely.telemetry()["steps"] < always.telemetry()["steps"] == 30


def test_names_of_objectives(stream: Any) -> None:
    assert learner_params("centaur:full")().objective == "full"
    with pytest.raises(dw.InputError, match="no objective 'fulll'"):
        learner_params("centaur:fulll")
    with pytest.raises(dw.InputError, match="trigger and brake are quantiles"):
        make_learner("centaur", stream.spec, trigger=2.0)


# --- the two-minute check, in small ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcomes(planner: Planner) -> dict[str, Any]:
    """PDMS and TTC of the judged plans of forty shifted scenes, the plans, and the entropies of the four frames."""
    long = dw.stream("driving", **{**SMALL, "scenes": 40})
    found: dict[str, Any] = {}
    for name, settings in {
        "none": {"objective": "none"},
        "zero": {"delta": 0.0},
        "cluster": {"delta": DELTA},
        "ascent": {"objective": "ascent", "delta": DELTA},
    }.items():
        one = learner(long, planner, settings.pop("objective", "cluster"), **settings)
        batches = frames(long, 40)
        plans = np.array([int(p.output[0]) for p in drive(one, batches)])
        ids = np.arange(4, 200, 5)
        found[name] = (plans[ids], long.spec.worth.of(ids, plans[ids]).mean(0))
        if name == "cluster":
            found["falls"] = [falls(one, batches[at : at + 4]) for at in range(0, 200, 5)]
    return found


DELTA = 2e-3


def falls(one: Centaur, batches: list[dw.Batch]) -> bool:
    """Whether the mean entropy of a scene's four earlier frames is lower after the step that they lead to."""
    drive(one, batches)
    step = moved(one)
    kept = [one.planner.features(x) for b in batches for x in one._rows(b)]
    with torch.no_grad():
        old, new = (
            float(torch.stack([one.measure(one._scores(w, f)) for f in kept]).mean())
            for w in (one.training.start, one.training.moved_by(step))
        )
    return new < old


def test_the_entropy_of_the_buffered_frames_falls(outcomes: dict[str, Any]) -> None:
    assert np.mean(outcomes["falls"]) >= 0.95


def test_descent_is_safer_than_ascent_and_not_less_safe_than_nothing(outcomes: dict[str, Any]) -> None:
    ttc = 1 + Scores._fields.index("ttc")
    assert outcomes["cluster"][1][ttc] >= outcomes["none"][1][ttc] - 0.01
    assert outcomes["cluster"][1][0] > outcomes["ascent"][1][0]


def test_some_decisions_change_and_most_do_not(outcomes: dict[str, Any]) -> None:
    assert 0.01 <= np.mean(outcomes["cluster"][0] != outcomes["none"][0]) <= 0.3
    assert np.array_equal(outcomes["zero"][0], outcomes["none"][0])


# --- classes --------------------------------------------------------------------------------------------------------


def test_classes_are_grouped_and_the_step_is_tents() -> None:
    stream = dw.stream("digits-c", rows=64, kinds=("contrast",), severity=3)
    one = make_learner("centaur", stream.spec, epochs=1, cache=False, model="convnet:8-16", groups=4)
    assert isinstance(one, TestTimeLearner)
    objective = one.parts.objective
    assert isinstance(objective, ClusterEntropyObjective)
    assert objective.measure is not None
    assert objective.measure.clusters == 4
    batches = [e for e in dw.rebatch(stream, 32) if isinstance(e, dw.Batch)]
    before = digest(one.adapted())
    drive(one, batches)
    assert digest(one.adapted()) != before
    assert one.telemetry()["steps"] == len(batches)


def test_as_many_groups_as_classes_are_tent() -> None:
    stream = dw.stream("digits-c", rows=64, kinds=("contrast",), severity=3)
    batches = [e for e in dw.rebatch(stream, 32) if isinstance(e, dw.Batch)]
    settings: dict[str, Any] = {"epochs": 1, "cache": False, "model": "convnet:8-16"}
    ours = make_learner("centaur", stream.spec, groups=10, **settings)
    tent = make_learner("tent", stream.spec, **settings)
    for a, b in zip(drive(ours, batches), drive(tent, batches)):
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-4, atol=1e-5)


# --- from the command line ------------------------------------------------------------------------------------------


def test_a_run_has_plans_judged_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from driftway.adapt.cli import main

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = ["scenes=8", "plans=32", "training=64", "steps=20", "width=16", "delta=0.1"]
    flags = [part for s in settings for part in ("--set", s)]
    for _ in range(2):  # the second run takes the planner out of the cache
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        assert main(["run", "driving", "--learner", "centaur", *flags, "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    worth = summary["worth"]
    assert worth["judged"] == 8
    assert 0 <= worth["pdms"] <= 1
    assert set(worth["before"]) == {"pdms", "nc", "dac", "ttc", "ep", "c"}
    records = (out / "records.csv").read_text().splitlines()
    assert sum(",worth," in line for line in records) == 8
    page = (out / "report.html").read_text()
    assert "plans of the trained weights" in page
    assert ('id="view' in page) == (worth["changed"] > 0)


def test_key_of_a_planner_follows_what_it_is_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told: list[str] = []
    tiny = {"scenes": 1, "plans": 8, "training": 8}
    spec = dw.stream("driving", **tiny).spec
    for training, stream_spec, trained in (
        (PlannerTraining(steps=2, width=8), spec, True),
        (PlannerTraining(steps=2, width=8), spec, False),
        (PlannerTraining(steps=3, width=8), spec, True),
        (PlannerTraining(steps=2, width=8), dw.stream("driving", **{**tiny, "training": 9}).spec, True),
        (PlannerTraining(steps=2, width=8), dw.stream("driving", severity=0, **tiny).spec, False),
    ):
        told.clear()
        first = source_planner(stream_spec, training, progress=told.append)
        assert bool(told) == trained
    again = source_planner(stream_spec, training, keep=False, progress=told.append)
    assert digest(dict(again.state_dict())) == digest(dict(first.state_dict()))


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from driftway.adapt.config import resolve
    from driftway.adapt.runs import Run

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = ["scenes=6", "plans=16", "training=8", "steps=2", "width=16", "delta=0.1", "mode=accumulate"]
    config = resolve({"stream": "driving", "learner": "centaur", "every": 5}, settings=settings)
    straight = Run(config, tmp_path / "straight")
    for _ in straight.steps():
        pass
    halved = Run(config, tmp_path / "halved")
    for record in halved.steps():
        if record.step >= 13:
            halved.stop()
    assert halved.summary()["status"] == "interrupted"
    resumed = Run(config, tmp_path / "halved", resume=True)
    for _ in resumed.steps():
        pass
    assert resumed.summary()["state_sha256"] == straight.summary()["state_sha256"]
    assert resumed.summary()["worth"] == straight.summary()["worth"]
    written = [(tmp_path / name / "records.csv").read_bytes() for name in ("straight", "halved")]
    assert written[0] == written[1]
