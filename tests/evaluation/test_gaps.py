"""What a curve shows: falls at switches by hand, and thinning that loses no minimum."""

import numpy as np
import pytest
from driftway.evaluation.continual_plots import apart, close_up, gap_plot, heat_plot, ramp
from driftway.evaluation.curves import Curve
from driftway.evaluation.gaps import (
    after_switches,
    aligned,
    envelope,
    lowest_grid,
    mean_accuracy,
    shape_of,
    switches,
    worst_before,
)


def curve_of(*experiences, update=None, sizes=None):
    """A curve from accuracies: a list per experience, one from its own start on; all rows are 1000."""
    n, k = len(experiences[0]), len(experiences)
    right = np.full((n, k), -1)
    for i, values in enumerate(experiences):
        right[n - len(values) :, i] = np.round(np.array(values) * 1000)
    begins = [n - len(values) for values in experiences]
    experience = np.searchsorted(begins, np.arange(n), side="right") - 1
    update = np.arange(1, n + 1) if update is None else np.asarray(update)
    names = tuple(f"task {i}" for i in range(k))
    return Curve(names, tuple(sizes or [1000] * k), update, 10 * update, experience, right)


HAND = curve_of(
    [0.5, 0.8, 0.9, 0.4, 0.6, 0.7, 0.8, 0.3, 0.75], [0.3, 0.6, 0.8, 0.85, 0.5, 0.7], [0.6, 0.9]
)  # fmt: skip


def long_curve(k=5, each=8000, seed=0):
    """Experiences that dip for one single evaluation each, somewhere in a noisy plateau."""
    rng = np.random.default_rng(seed)
    lines = [np.clip(0.9 + rng.normal(0, 0.01, each * (k - i)), 0, 1) for i in range(k)]
    for i, line in enumerate(lines[:-1]):
        line[each + each // 3 + 3 * i] = 0.1 + i / 50
    return curve_of(*lines)


def test_falls_at_switches_by_hand():
    first, second = switches(HAND)
    assert (first.begins, first.place, first.update) == (1, 2, 3)
    fall = first.deepest
    assert (fall.experience, fall.before, fall.lowest, fall.end) == (0, 0.9, 0.4, 0.8)
    assert (fall.place, fall.updates) == (3, 1)
    assert second.update == 7
    assert [f.depth for f in second.falls] == pytest.approx([0.5, 0.35])
    assert second.mean == pytest.approx(0.425)
    assert (second.deepest.experience, second.deepest.end) == (0, 0.75)


def test_gap_depth_of_the_scores_is_the_mean_of_all_falls():
    from driftway.evaluation.continual_scores import Scores

    scores = Scores(HAND.sizes)
    for row, k in zip(HAND.right, HAND.experience):
        scores.add(row[: k + 1])
    depths = [fall.depth for switch in switches(HAND) for fall in switch.falls]
    assert scores.figures()["gap_depth"] == pytest.approx(np.mean(depths))
    assert scores.figures()["acc"] == pytest.approx(mean_accuracy(HAND)[-1])


def test_means_and_the_worst_by_hand():
    np.testing.assert_allclose(mean_accuracy(HAND)[[0, 3, 8]], [0.5, 0.35, 2.35 / 3])
    worst = worst_before(HAND)
    assert np.isnan(worst[:3]).all()
    np.testing.assert_allclose(worst[3:], [0.4, 0.6, 0.7, 0.8, 0.3, 0.7])


def test_after_a_switch_by_hand():
    first, second = after_switches(HAND, 3)
    assert first[0].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(first[1], [0.9, 0.4, 0.6, 0.7])
    assert second[0].tolist() == [0, 1, 2]
    np.testing.assert_allclose(second[1], [0.825, 0.4, 0.725])
    assert close_up(HAND, prefix="p") is None
    drawn = close_up(long_curve(3, 300), prefix="p")
    assert [words for *_, words in drawn.legend] == ["2 begins", "3 begins"]


def test_one_experience_has_no_switch():
    one = curve_of([0.1, 0.6, 0.7])
    assert switches(one) == []
    assert np.isnan(worst_before(one)).all()
    assert [kind for _, kind, _ in gap_plot(one, prefix="p").legend] == ["solid"]
    assert "−" not in gap_plot(one, prefix="p").svg


def test_no_thinning_loses_a_dip_of_one_evaluation():
    curve = long_curve()
    accuracy = curve.accuracy
    for i in range(4):
        lowest = np.nanmin(accuracy[:, i])
        assert accuracy[shape_of(accuracy[:, i], 240), i].min() == lowest
        assert np.nanmin(lowest_grid(curve, curve.accuracy, 300)[i]) == lowest
    mean = mean_accuracy(curve)
    x, (low, middle, high) = envelope(curve, mean, 300)
    assert low.min() == mean.min()
    assert high.max() == mean.max()
    assert (low <= middle).all()
    assert (middle <= high).all()
    assert (np.diff(x) > 0).all()
    assert len(x) <= 304


def test_envelope_does_not_go_across_a_switch():
    y = np.array([1.0] * 5 + [0.0] * 5)
    _, (low, _, high) = envelope(curve_of([1.0] * 10, [0.0] * 5), y, 2)
    assert low.tolist() == high.tolist() == [1, 0]
    _, (low, _, high) = envelope(curve_of([1.0] * 10, [0.0] * 3), np.arange(10.0), 1)
    assert (low.tolist(), high.tolist()) == ([0, 7], [6, 9])


def test_map_by_hand():
    np.testing.assert_allclose(lowest_grid(HAND, HAND.accuracy, 3)[0], [0.5, 0.4, 0.3])
    grid = lowest_grid(HAND, HAND.accuracy, 100)
    assert grid.shape == (3, 9)
    np.testing.assert_allclose(grid[2], [np.nan] * 7 + [0.6, 0.9])


def test_a_stretch_without_an_evaluation_shows_the_one_before():
    sparse = curve_of([0.5, 0.7, 0.9], [0.2], update=[10, 25, 30])
    np.testing.assert_allclose(lowest_grid(sparse, sparse.accuracy, 6)[0], [np.nan, 0.5, 0.5, 0.5, 0.7, 0.9])
    np.testing.assert_allclose(lowest_grid(sparse, sparse.accuracy, 6)[1], [np.nan] * 5 + [0.2])


def test_seeds_with_other_lengths_meet_at_their_switches():
    like = curve_of([0.5] * 6, [0.5] * 3, update=[10, 20, 30, 40, 50, 60])
    other = curve_of([0.5] * 6, [0.5] * 3, update=[10, 20, 33, 43, 53, 63])
    np.testing.assert_allclose(aligned(like, like), like.update)
    np.testing.assert_allclose(aligned(other, like), [300 / 33, 600 / 33, 30, 40, 50, 60])
    stopped = curve_of([0.5] * 2, update=[10, 20])
    np.testing.assert_allclose(aligned(stopped, like), [10, 20])


def test_drops_are_written_beside_their_arrows():
    svg = gap_plot(HAND, prefix="p").svg
    assert svg.count("−50 points") == 2
    flat = curve_of([0.5, 0.5, 0.5, 0.501], [0.5, 0.6])
    assert "points" not in gap_plot(flat, prefix="p").svg
    assert gap_plot(HAND, prefix="p").svg == svg


@pytest.mark.parametrize("k", [2, 5, 20, 60])
def test_long_curves_make_small_drawings(k):
    curve = long_curve(k, 24_000 // k)
    drawn, mapped = gap_plot(curve, prefix="p"), heat_plot(curve, prefix="q")
    assert len(drawn.svg) < 300_000
    assert len(mapped.svg) < 60_000
    assert len(drawn.legend) <= 11
    assert mapped.svg.count('href="data:image/png;base64,') == 2  # the map and its colour bar
    assert "\n" not in drawn.svg + mapped.svg


def test_a_map_of_ends_has_figures():
    ends = curve_of([0.9, 0.4, 0.35], [0.8, 0.7], [0.95], update=[10, 20, 30])
    svg = heat_plot(ends, prefix="p", ends_only=True).svg
    for words in ("after 1", "after 3", ">90<", ">40<", ">35<", ">95<"):
        assert words in svg
    assert svg.count("<text") == 3 + 3 + 6 + 2


def test_colours_grow_lighter_and_labels_keep_apart():
    for n in (1, 2, 5, 20):
        colours = ramp(n)
        light = [sum(w * int(c[i : i + 2], 16) for w, i in ((0.3, 1), (0.59, 3), (0.11, 5))) for c in colours]
        assert len(set(colours)) == n
        assert light == sorted(light)
    heights = apart([0.1, 0.11, 0.9, 1.0, 1.0], 0.05)
    assert (np.diff(heights) > 0.0499).all()
    np.testing.assert_allclose(heights, [0.08, 0.13, 0.9, 0.95, 1.0])
