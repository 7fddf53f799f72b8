"""The stream driving: five frames a scene, half a second apart, the last one judged."""

from __future__ import annotations

from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.streams.driving import scene
from driftway.streams.driving_truth import oracle, score_plans


def small(**more: Any) -> Any:
    return dw.stream("driving", **{"scenes": 4, "plans": 32, "training": 16, **more})


def test_any_event(check_seek: Any) -> None:
    assert len(check_seek(small)) == 4 * 6


def test_time_is_in_seconds_and_scenes_are_apart() -> None:
    times = [e.time for e in small() if isinstance(e, dw.Batch)]
    gaps = np.diff(times)
    assert gaps[:4].tolist() == [0.5] * 4
    assert gaps[4] > 1.0
    assert len(times) == small().spec.length


def test_rows_and_labels_are_those_of_the_scene() -> None:
    stream = small(severity=2)
    events = list(stream)
    truth = scene(1, split="test", severity=2)
    rows = [e for e in events if isinstance(e, dw.Batch)][5:10]
    np.testing.assert_array_equal(np.concatenate([b.x for b in rows]), truth.observations.astype(np.float64))
    labels = [e for e in events if isinstance(e, dw.Labels)]
    plans = stream.spec.worth.vocabulary
    scores = score_plans(truth, plans)
    assert labels[1].y.tolist() == [oracle(truth, plans, scores)]
    assert labels[1].ids.tolist() == [9]
    assert not any(label.learn for label in labels)
    worth = stream.spec.worth.of(np.array([8, 9, 9]), np.array([0, 3, labels[1].y[0]]))
    assert np.isnan(worth[0]).all()
    np.testing.assert_allclose(worth[1], [getattr(scores, n)[3] for n in stream.spec.worth.names], rtol=1e-6)
    assert worth[2, 0] == pytest.approx(scores.pdms.max(), rel=1e-6)
    assert stream.spec.worth.names[0] == "pdms"
    assert stream.spec.worth.scene(9).number == 1


def test_seed_split_and_severity_are_other_scenes() -> None:
    def first(**more: Any) -> Any:
        return next(iter(small(**more))).x

    assert np.array_equal(first(), first())
    for other in ({"seed": 1}, {"split": "validation"}, {"severity": 0}):
        assert not np.array_equal(first(), first(**other))


def test_source_is_clean_and_the_same_for_every_shift() -> None:
    a, b = small(severity=3, seed=5).spec, small(severity=0).spec
    x, metrics, expert = a.worth.train(5)
    assert x.shape == (5, 62)
    assert metrics.shape == (5, 32, 6)
    assert (metrics[np.arange(5), expert, 0] == metrics[:, :, 0].max(1)).all()
    np.testing.assert_array_equal(x, b.source.train()[0][:5])
    np.testing.assert_array_equal(a.source.train()[1][:5], expert)
    assert len(a.source.train()[1]) == a.worth.training == 16
    held, _ = a.source.test()
    assert not any((row == x).all(1).any() for row in held)


@pytest.mark.parametrize(
    ("given", "reason"),
    [({"severity": 4}, "severity"), ({"scenes": 0}, "scenes"), ({"plans": 2}, "plans"), ({"training": 1}, "training")],
)
def test_what_cannot_be_is_one_line(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(dw.InputError, match=reason):
        small(**given)
