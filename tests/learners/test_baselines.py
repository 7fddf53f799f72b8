"""Majority, no-change and frozen, worked by hand."""

from __future__ import annotations

import driftway as dw
import numpy as np
import pytest
from driftway.adapt.state import digest
from numpy.testing import assert_array_equal

KNOWN = dw.StreamSpec("known", (dw.Column("a"),), classes=("x", "y", "z"))
OPEN = dw.StreamSpec("open", (dw.Column("a"),))
NUMBERS = dw.StreamSpec("numbers", (dw.Column("a"),), target="regression")


def rows(labels: list[float], spec: dw.StreamSpec = KNOWN) -> dw.Batch:
    n = len(labels)
    kind = np.float64 if spec.target == "regression" else np.int64
    return dw.Batch(np.arange(n), np.arange(float(n))[:, None], 0.0, np.array(labels, kind))


def test_majority_counts_and_takes_the_lowest_code_on_ties() -> None:
    learner = dw.learner("majority", KNOWN)
    prediction = learner.test_then_train(rows([2, 1, 1, 2, 2]))
    assert_array_equal(prediction.output, [0, 2, 1, 1, 1])
    assert prediction.scores is not None
    assert_array_equal(
        prediction.scores, [[1 / 3] * 3, [0, 0, 1], [0, 1 / 2, 1 / 2], [0, 2 / 3, 1 / 3], [0, 1 / 2, 1 / 2]]
    )


def test_majority_of_numbers_is_the_mean_even_at_the_end_of_the_range() -> None:
    learner = dw.learner("majority", NUMBERS)
    assert_array_equal(learner.test_then_train(rows([4, 2, 9], NUMBERS)).output, [0, 4, 3])
    learner = dw.learner("majority", NUMBERS)
    learner.test_then_train(rows([1.7e308, -1.7e308, 1.7e308], NUMBERS))
    assert np.isfinite(learner.predict(rows([0], NUMBERS)).output).all()


def test_no_change_repeats() -> None:
    learner = dw.learner("no-change", KNOWN)
    prediction = learner.test_then_train(rows([2, 1, 1]))
    assert_array_equal(prediction.output, [0, 2, 1])
    assert_array_equal(prediction.scores, [[1, 0, 0], [0, 0, 1], [0, 1, 0]])
    assert_array_equal(learner.predict(rows([0, 0])).output, [1, 1])
    numbers = dw.learner("no-change", NUMBERS)
    assert_array_equal(numbers.test_then_train(rows([0.5, -2], NUMBERS)).output, [0, 0.5])


@pytest.mark.parametrize("name", ["majority", "no-change", "logistic"])
def test_scores_widen_when_a_class_was_met(name: str) -> None:
    learner = dw.learner(name, OPEN)
    prediction = learner.test_then_train(rows([0, 3, 5]))
    assert prediction.scores is not None
    assert prediction.scores.shape == (3, 4)  # class 5 was met after the last prediction
    assert_array_equal(prediction.scores[:2, 1:], 0)
    scores = learner.predict(rows([0])).scores
    assert scores is not None
    assert scores.shape == (1, 6)


def test_frozen_learns_so_many_rows_and_no_more() -> None:
    spec = dw.StreamSpec("s", (dw.Column("a"),), classes=("n", "y"))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 1))
    batch = dw.Batch(np.arange(300), x, 0.0, (x[:, 0] > 0).astype(np.int64))
    control, short = dw.learner("frozen:logistic", spec, after=70, rate=0.2), dw.learner("logistic", spec, rate=0.2)
    prediction = control.test_then_train(batch)
    short.test_then_train(batch.rows(slice(0, 70)))
    assert digest(control.state()["inner"]) == digest(short.state())
    assert_array_equal(prediction.output[70:], short.predict(batch.rows(slice(70, None))).output)
    assert control.telemetry()["frozen"] == 1.0
    one_block = dw.learner("frozen:logistic", spec, after=70, rate=0.2)
    one_block.learn(batch, one_block.predict(batch))
    assert digest(one_block.state()) == digest(control.state())
