"""The compiled detectors against river's, value by value."""

from __future__ import annotations

import doctest

import driftway.models.detectors as dt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import drift

LENGTH = 6_000


def series(name: str) -> np.ndarray:
    """A series of 0/1 errors or real values that stays, jumps, slides, repeats or is constant."""
    rng = np.random.default_rng(7)
    t = np.arange(LENGTH)
    return {
        "stationary": lambda: (rng.random(LENGTH) < 0.3).astype(float),
        "jumps": lambda: (rng.random(LENGTH) < np.array([0.1, 0.6, 0.2, 0.9])[t * 4 // LENGTH]).astype(float),
        "slides": lambda: (rng.random(LENGTH) < 0.05 + 0.9 * t / LENGTH).astype(float),
        "returns": lambda: (rng.random(LENGTH) < np.where(t // 500 % 2, 0.7, 0.3)).astype(float),
        "gaussian": lambda: rng.normal(np.where(t < 2_500, -3.0, 4.0), 2.0),
        "heavy": lambda: rng.standard_t(2, LENGTH) * 100.0,
        "tiny": lambda: rng.normal(1e6, 1e-6, LENGTH),
        "constant": lambda: np.full(LENGTH, 0.1),
        "step": lambda: (t >= 1_234).astype(float),
    }[name]()


KINDS = ["stationary", "jumps", "slides", "returns", "gaussian", "heavy", "tiny", "constant", "step"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("delta", [0.2, 0.002, 1e-5])
def test_adwin_is_rivers_at_every_value(kind: str, delta: float) -> None:
    theirs, ours = drift.ADWIN(delta=delta), dt.new_adwins(3)
    for value in series(kind):
        theirs.update(value)
        assert dt.adwin_update(ours, 1, value, delta) == theirs.drift_detected
        assert dt.adwin_width(ours, 1) == theirs.width
        assert dt.adwin_mean(ours, 1) == theirs.estimation
        assert ours.cells[1, dt.SQUARES] == theirs.variance
    assert np.isfinite(ours.cells).all()


@pytest.mark.parametrize("kind", ["jumps", "returns", "gaussian", "step"])
def test_the_series_hold_detections_to_compare(kind: str) -> None:
    """The test above would prove little if nothing were ever found."""
    ours = dt.new_adwins(1)
    assert sum(dt.adwin_update(ours, 0, value, 0.002) for value in series(kind)) > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threshold", [5.0, 50.0])
@pytest.mark.parametrize("mode", ["both", "up"])
def test_page_hinkley_is_rivers_at_every_value(kind: str, threshold: float, mode: str) -> None:
    theirs, ours = drift.PageHinkley(threshold=threshold, mode=mode), dt.new_page_hinkleys(2)
    found = 0
    for value in series(kind):
        theirs.update(value)
        ours_found = dt.page_hinkley_update(ours, 1, value, 30, 0.005, threshold, 0.9999, mode == "both")
        assert ours_found == theirs.drift_detected
        assert dt.page_hinkley_mean(ours, 1) == theirs._x_mean.get()
        found += ours_found
    assert np.isfinite(ours.sums).all()
    assert found > 0 or kind in {"stationary", "tiny", "constant", "slides", "returns", "jumps"}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=400), st.floats(1e-6, 0.9))
def test_adwin_is_rivers_on_any_values(values: list[float], delta: float) -> None:
    theirs, ours = drift.ADWIN(delta=delta), dt.new_adwins(1)
    for value in values:
        theirs.update(value)
        assert dt.adwin_update(ours, 0, value, delta) == theirs.drift_detected
        assert dt.adwin_mean(ours, 0) == theirs.estimation


def test_neighbours_do_not_touch_each_other() -> None:
    """Detectors of one set, updated in turn, do what each would do alone."""
    values = np.stack([series("jumps"), series("returns"), series("step")])
    together, alone = dt.new_adwins(3), [dt.new_adwins(1) for _ in values]
    for t in range(LENGTH):
        for i, one in enumerate(alone):
            assert dt.adwin_update(together, i, values[i, t], 0.002) == dt.adwin_update(one, 0, values[i, t], 0.002)
    for i, one in enumerate(alone):
        assert np.array_equal(together.cells[i], one.cells[0])


def test_a_copy_goes_on_like_the_original() -> None:
    values = series("returns")
    first, ph = dt.new_adwins(1), dt.new_page_hinkleys(1)
    for value in values[:2_000]:
        dt.adwin_update(first, 0, value, 0.002)
        dt.page_hinkley_update(ph, 0, value, 30, 0.005, 20.0, 0.9999)
    second, ph2 = dt.Adwins(first.cells.copy()), dt.PageHinkleys(ph.sums.copy())
    for value in values[2_000:]:
        assert dt.adwin_update(first, 0, value, 0.002) == dt.adwin_update(second, 0, value, 0.002)
        found = [dt.page_hinkley_update(p, 0, value, 30, 0.005, 20.0, 0.9999) for p in (ph, ph2)]
        assert found[0] == found[1]
    assert np.array_equal(first.cells, second.cells)


def test_reset_makes_a_detector_as_new() -> None:
    used, fresh = dt.new_adwins(1), dt.new_adwins(1)
    ph, ph_fresh = dt.new_page_hinkleys(1), dt.new_page_hinkleys(1)
    for value in series("gaussian")[:1_000]:
        dt.adwin_update(used, 0, value, 0.002)
        dt.page_hinkley_update(ph, 0, value, 30, 0.005, 50.0, 0.9999)
    dt.adwin_reset(used, 0)
    dt.page_hinkley_reset(ph, 0)
    assert dt.adwin_width(used, 0) == dt.adwin_mean(used, 0) == 0.0
    assert np.array_equal(ph.sums, ph_fresh.sums)
    for value in series("jumps"):
        assert dt.adwin_update(used, 0, value, 0.002) == dt.adwin_update(fresh, 0, value, 0.002)
        assert dt.adwin_width(used, 0) == dt.adwin_width(fresh, 0)


def test_a_full_top_level_drops_the_oldest_values() -> None:
    """Beyond 32 levels the window stops growing instead of writing past its arrays."""
    a = dt.new_adwins(1)
    sizes = 2.0 ** np.arange(dt.LEVELS)
    counts = a.cells[0, dt.COUNTS : dt.CELLS]
    counts[:] = dt.BUCKETS
    a.cells[0, dt.WIDTH], a.cells[0, dt.TOP] = dt.BUCKETS * sizes.sum(), dt.LEVELS
    before = dt.adwin_width(a, 0)
    assert not dt.adwin_update(a, 0, 0.0, 0.002)
    assert dt.adwin_width(a, 0) == before + 1 - sizes[-1]
    assert dt.adwin_width(a, 0) == (counts * sizes).sum()
    assert (counts <= dt.BUCKETS).all()


def test_the_examples_in_the_docstrings() -> None:
    for function in (dt.adwin_update, dt.page_hinkley_update):
        runner = doctest.DocTestRunner()
        for case in doctest.DocTestFinder().find(function.py_func, globs=vars(dt).copy()):
            assert runner.run(case).failed == 0
        assert runner.tries > 0
