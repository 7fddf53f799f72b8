"""Continual evaluation: the hand-worked curves, a slow re-implementation beside the streaming one, and the asking."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driftway.adapt.state import digest, join, split
from driftway.evaluation.continual import Answers, Continual
from driftway.evaluation.continual_scores import Scores
from driftway.evaluation.curves import curve_header, read_curve
from driftway.evaluation.metrics import METRICS
from driftway.evaluation.subsets import margin, standard_error, subset
from driftway.evaluation.windows import Moves
from driftway.streams import Experience, InputError

ONE = [50, 80, 90, 40, 60, 70, 80, 30, 75]
TWO = [30, 60, 80, 85, 50, 70]
THREE = [60, 90]
CURVE = (
    [[a] for a in ONE[:3]] + [list(c) for c in zip(ONE[3:7], TWO[:4])] + [list(c) for c in zip(ONE[7:], TWO[4:], THREE)]
)
"""Right answers of 100 at nine evaluations of three experiences that begin at the first, fourth and eighth."""


def scored(curve: Sequence[Sequence[int]], sizes: Sequence[int] = (100, 100, 100), **options: Any) -> Scores:
    scores = Scores(sizes, **options)
    for right in curve:
        scores.add(right)
    return scores


def close(found: dict[str, Any], **expected: float | None) -> None:
    for name, value in expected.items():
        assert found[name] == (None if value is None else pytest.approx(value, abs=1e-12)), name


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_the_curve_worked_by_hand() -> None:
    found = scored(CURVE).figures()
    close(found, acc=2.35 / 3, forgetting=0.15, bwt=-0.15, learning_accuracy=2.65 / 3, min_acc=0.4)
    close(found, wc_acc=0.3 + 2 / 3 * 0.4)
    close(found, mfn=2.35 / 3, maa=(0.9 + (0.8 + 0.85) / 2 + 2.35 / 3) / 3)
    anytime = [0.5, 0.8, 0.9, 0.35, 0.6, 0.75, 0.825, 1.4 / 3, 2.35 / 3]
    close(found, aaa=sum(anytime) / 9)
    close(found, gap_depth=(0.5 + 0.5 + 0.35) / 3, gap_depth_relative=(5 / 9 + 5 / 8 + 35 / 85) / 3)


def test_the_curve_after_its_first_and_second_experience() -> None:
    close(scored(CURVE[:3]).figures(), min_acc=None, wc_acc=0.9, acc=0.9, forgetting=None, bwt=None, gap_depth=None)
    close(scored(CURVE[:7]).figures(), min_acc=0.4, wc_acc=0.625, forgetting=0.1, gap_depth=0.5)
    close(scored(CURVE[:3]).figures(), mfn=0.9, maa=0.9)
    assert str(scored([[5], [5, 0]]).figures()["bwt"]) == "0.0", "nothing lost is not minus nothing"
    close(scored(CURVE[:6]).figures(), mfn=0.75, maa=(0.9 + 0.75) / 2)


def test_ends_alone_do_not_show_the_gap() -> None:
    found = scored([CURVE[n] for n in (2, 6, 8)]).figures()
    close(found, min_acc=0.725, wc_acc=0.3 + 2 / 3 * 0.725, acc=2.35 / 3)
    close(found, wc_acc=0.78333333333333333)
    close(found, mfn=2.35 / 3, maa=scored(CURVE).figures()["maa"])


@pytest.mark.parametrize(
    ("width", "drops", "rises"),
    [(1, (0, 0, 0), (0, 0, 0)), (2, (50, 35, 0), (45, 30, 30)), (3, (50, 35, 0), (45, 50, 30))],
)
def test_windows_worked_by_hand(width: int, drops: tuple[int, ...], rises: tuple[int, ...]) -> None:
    found = scored(CURVE, windows=(width,)).figures()
    close(found, **{f"wf{width}": sum(drops) / 300, f"wp{width}": sum(rises) / 300})


def test_window_plasticity_as_published() -> None:
    """The authors' code misses rises that begin below an earlier value of their window."""
    own, reference = (moved([90, 10, 80], 3, reference=r) for r in (False, True))
    assert (own.drop, own.rise) == (80, 70)
    assert (reference.drop, reference.rise) == (80, 0)
    assert moved(ONE, 3, reference=True).rise == 40
    found = scored(CURVE, windows=(3,), wp_reference=True).figures()
    close(found, wp3=(40 + 50 + 30) / 300, wf3=0.85 / 3)


def test_forgetting_from_the_own_end_and_from_the_best_end() -> None:
    """Learning the second experience improves the first; the two variants differ by that."""
    found = scored([[50], [70, 60], [40, 50, 90]]).figures()
    close(found, forgetting=(0.1 + 0.1) / 2, forgetting_max=(0.3 + 0.1) / 2)


def test_an_experience_nobody_knew_has_no_relative_gap() -> None:
    found = scored([[0], [0, 50], [0, 25, 10]]).figures()
    close(found, gap_depth=0.25 / 3, gap_depth_relative=0.5)


def test_experiences_count_alike_whatever_their_size() -> None:
    found = scored([[5], [5, 50]], sizes=(10, 200)).figures()
    close(found, acc=(0.5 + 0.25) / 2, min_acc=0.5, wc_acc=0.125 + 0.25)


def test_before_anything_nothing_is_known() -> None:
    assert set(scored([]).figures().values()) == {None}
    with pytest.raises(ValueError, match="2 counts after 0 of 3"):
        scored([[1, 1]])
    with pytest.raises(ValueError, match="1 counts after 2"):
        scored([[1], [1, 1], [1]])
    with pytest.raises(ValueError, match="at least one row"):
        Scores([3, 0])


def test_every_figure_is_explained() -> None:
    for name in scored(CURVE).figures():
        assert METRICS[name].direction in ("higher", "lower"), name


# --- against a slow re-implementation ---------------------------------------------------------------------------------


def moved(values: Sequence[int], width: int, *, reference: bool = False) -> Moves:
    moves = Moves(width, reference=reference)
    for n, value in enumerate(values):
        moves.add(n, value)
    return moves


def published_rise(values: Sequence[int], width: int) -> int:
    """All pairs of every window, starts below an earlier value of the window passed over."""
    best = 0
    for end in range(1, len(values) + 1):
        window = values[max(0, end - width) : end]
        for m, start in enumerate(window):
            if start >= max(window[: m + 1]):
                best = max([best, *(later - start for later in window[m + 1 :])])
    return best


def random_curve(seed: int, lengths: Sequence[int], rows: int = 20) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, rows + 1, k + 1).tolist() for k, n in enumerate(lengths) for _ in range(n)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("width", [1, 2, 7, 100])
def test_windows_equal_all_pairs(seed: int, width: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1000, 60).tolist()
    pairs = [(m, q) for q in range(60) for m in range(max(0, q - width + 1), q)]
    moves = moved(values, width)
    assert moves.drop == max([0, *(values[m] - values[q] for m, q in pairs)])
    assert moves.rise == max([0, *(values[q] - values[m] for m, q in pairs)])
    assert moved(values, width, reference=True).rise == published_rise(values, width)


@pytest.mark.parametrize("seed", range(5))
def test_figures_equal_the_formulas_on_the_whole_curve(seed: int) -> None:
    lengths = [4, 1, 6, 3]
    curve = random_curve(seed, lengths)
    share = [[c / 20 for c in right] for right in curve]
    ends = np.cumsum(lengths) - 1
    k, last = len(lengths), share[-1]
    least = [min(s[i] for s in share[ends[i] + 1 :]) for i in range(k - 1)]
    gaps = [
        (share[ends[s]][i], min(share[n][i] for n in range(ends[s] + 1, ends[s + 1] + 1)))
        for s in range(k - 1)
        for i in range(s + 1)
    ]
    found = scored(curve, sizes=[20] * k).figures()
    close(found, acc=np.mean(last), min_acc=np.mean(least), wc_acc=(last[-1] + sum(least)) / k)
    close(found, forgetting=np.mean([share[ends[i]][i] - last[i] for i in range(k - 1)]))
    close(found, forgetting_max=np.mean([max(share[e][i] for e in ends[i:-1]) - last[i] for i in range(k - 1)]))
    close(found, learning_accuracy=np.mean([share[ends[i]][i] for i in range(k)]))
    close(found, mfn=np.mean(last), maa=np.mean([np.mean(share[e]) for e in ends]))
    close(found, aaa=np.mean([np.mean(s) for s in share]), gap_depth=np.mean([b - low for b, low in gaps]))
    close(found, gap_depth_relative=np.mean([(b - low) / b for b, low in gaps if b]))


@pytest.mark.parametrize("seed", range(5))
def test_what_must_hold_of_any_curve(seed: int) -> None:
    curve = random_curve(seed, [5, 30, 20])
    sizes, before = [20] * 3, None
    scores = Scores(sizes, windows=(2, 10, 100))
    for n, right in enumerate(curve):
        scores.add(right)
        now = scores.figures()
        assert now["wc_acc"] <= now["acc"] + 1e-12  # type: ignore[operator]
        assert now["wf2"] <= now["wf10"] <= now["wf100"]  # type: ignore[operator]
        if before is not None and len(right) == len(curve[n - 1]):
            assert all(now[w] >= before[w] for w in ("wf2", "wf10", "wp2", "wp100"))  # type: ignore[operator]
            assert before["min_acc"] is None or now["min_acc"] <= before["min_acc"]  # type: ignore[operator]
        before = now
    coarse = scored([c for n, c in enumerate(curve) if n % 2 or n in (4, 34, 54)], sizes=sizes).figures()
    assert coarse["min_acc"] >= now["min_acc"]  # type: ignore[operator]
    assert now["forgetting_max"] <= now["wf100"] * 3 / 2 + 1e-12  # type: ignore[operator]


@pytest.mark.parametrize("at", [0, 2, 3, 5, 7, 8, 9])
@pytest.mark.parametrize("reference", [False, True])
def test_saved_and_loaded_equals_uninterrupted(at: int, reference: bool) -> None:
    whole, first = scored(CURVE, wp_reference=reference), scored(CURVE[:at], wp_reference=reference)
    skeleton, arrays = split(first.state())
    second = scored(CURVE[:4], wp_reference=reference)
    second.load(join(json.loads(json.dumps(skeleton)), arrays))
    assert second.figures() == first.figures()
    for right in CURVE[at:]:
        second.add(right)
    assert second.figures() == whole.figures()
    assert digest(second.state()) == digest(whole.state())


# --- asking -----------------------------------------------------------------------------------------------------------


def experiences(sizes: Sequence[int] = (6, 4, 5)) -> list[Experience]:
    """Experience i has the classes 2i and 2i + 1, and the rows' first column says which one it is."""
    made = []
    for i, n in enumerate(sizes):
        y = 2 * i + np.arange(n) % 2
        made.append(
            Experience(f"task {i}, of three", np.c_[y, np.arange(n)].astype(np.float32), y, 0, (2 * i, 2 * i + 1))
        )
    return made


class Fixed:
    """Answers by a table from the label in the first column to scores; notes how often it was asked."""

    def __init__(self, scores: Any, known: bool = False) -> None:
        self.scores = np.asarray(scores, np.float64)
        self.known = known
        self.now = 0
        self.probes: list[int] = []
        self.asked = 0

    def probe(self, x: Any) -> Callable[[], Any]:
        self.probes.append(len(x))
        labels = x[:, 0].astype(int)

        def ask() -> Any:
            self.asked += 1
            return self.scores[labels]

        return ask

    def version(self) -> int | None:
        return self.now if self.known else None


def test_counts_by_experience_in_one_pass() -> None:
    scores = np.eye(6)
    scores[3] = [0, 0, 1, 0, 0, 0]  # class 3 is taken for class 2
    scores[4] = [9, 0, 0, 0, 1, 0]  # class 4 for class 0, but among its own it would be right
    for scenario, expected in (("class", (6, 2, 2)), ("domain", (6, 2, 2)), ("task", (6, 2, 5))):
        learner = Fixed(scores)
        assert Answers(experiences(), scenario).ask(learner, 3) == expected
        assert learner.asked == 1
        assert [Answers(experiences(), scenario).ask(learner, k) for k in (1, 2)] == [expected[:1], expected[:2]]


def test_counts_equal_one_pass_per_experience() -> None:
    rng = np.random.default_rng(2)
    learner, given = Fixed(rng.normal(size=(6, 6))), experiences((7, 3, 11))
    alone = [int(sum(learner.scores[e.x[:, 0].astype(int)].argmax(1) == e.y)) for e in given]
    assert list(Answers(given).ask(learner, 3)) == alone
    shuffled = [Experience(e.name, e.x[::-1], e.y[::-1], e.rows, e.classes) for e in given]
    assert list(Answers(shuffled).ask(learner, 3)) == alone


def test_classes_without_a_score_come_last() -> None:
    learner = Fixed(np.eye(6)[:, :3])
    assert Answers(experiences(), "class").ask(learner, 3) == (6, 2, 0)
    assert Answers(experiences(), "task").ask(learner, 3) == (6, 2, 3)
    with pytest.raises(ValueError, match="scenario"):
        Answers(experiences(), "classes")


def test_a_learner_that_stands_still_is_not_asked_again() -> None:
    learner = Fixed(np.eye(6), known=True)
    watch = Continual(experiences())
    for update in (1, 2, 3):
        assert [e.right for e in watch.updated(update, learner)] == [(6,)]
    assert learner.asked == 1
    learner.now, learner.scores = 1, np.zeros((6, 6))
    assert [e.right for e in watch.updated(4, learner)] == [(3,)]
    assert watch.switch(4, learner) == []
    watch.updated(5, learner)
    assert learner.probes == [6, 10]
    assert (watch.scores.evaluations, learner.asked) == (5, 3)
    watch.load(watch.state())
    watch.updated(6, learner)
    assert (watch.scores.evaluations, learner.asked) == (6, 4)


def evaluated(every: int | None, updates: Sequence[int]) -> list[tuple[int, int]]:
    """Update and experience of each evaluation, where the experiences take so many updates."""
    watch, learner, update, done = Continual(experiences(), every), Fixed(np.eye(6)), 0, []
    for i, n in enumerate(updates):
        done += watch.switch(update, learner) if i else []
        for _ in range(n):
            update += 1
            done += watch.updated(update, learner)
    done += watch.end(update, learner)
    assert watch.summary()["evaluations"] == len(done)
    return [(e.update, e.experience) for e in done]


def test_when_it_evaluates() -> None:
    assert evaluated(1, [2, 1, 2]) == [(1, 0), (2, 0), (3, 1), (4, 2), (5, 2)]
    assert evaluated(2, [3, 3, 2]) == [(2, 0), (3, 0), (4, 1), (6, 1), (8, 2)]
    assert evaluated(4, [3, 1]) == [(3, 0), (4, 1)]
    assert evaluated(None, [3, 3, 2]) == [(3, 0), (6, 1), (8, 2)]
    assert evaluated(3, [2]) == [(2, 0)]
    assert evaluated(2, [2, 0, 1]) == [(2, 0), (2, 1), (3, 2)]


def test_what_it_says() -> None:
    watch, learner = Continual(experiences()), Fixed(np.eye(6))
    assert watch.row() == {"experience": 0, "acc": None, "min_acc": None, "wc_acc": None}
    assert set(watch.row()) == set(watch.columns)
    watch.updated(1, learner)
    watch.switch(1, learner)
    watch.updated(2, learner)
    assert watch.row() == {"experience": 1, "acc": 1.0, "min_acc": 1.0, "wc_acc": 1.0}
    found = watch.summary()
    assert {k: found[k] for k in ("evaluations", "every", "rows", "experiences")} == {
        "evaluations": 2, "every": 1, "rows": 10, "experiences": 2,
    }  # fmt: skip
    assert [watch.room(u) for u in (0, 1)] == [1, 1]
    assert [Continual(experiences(), 3).room(u) for u in (0, 2, 3)] == [3, 1, 3]
    assert Continual(experiences(), None).room(5) is None
    watch.switch(2, learner)
    with pytest.raises(InputError, match="after the last of its 3 experiences"):
        watch.switch(3, learner)
    with pytest.raises(ValueError, match="every"):
        Continual(experiences(), 0)


# --- a part of the rows -----------------------------------------------------------------------------------------------


def test_a_subset_is_stratified_and_fixed() -> None:
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat([3, 5, 8], [60, 30, 10]))
    whole = Experience("many", np.arange(100, dtype=np.float32).reshape(-1, 1), y, 7, (3, 5, 8))
    part = subset(whole, 25)
    assert np.bincount(part.y)[[3, 5, 8]].tolist() == [15, 8, 2]
    rows = part.x[:, 0].astype(int)
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(part.y, y[rows])
    before = str(np.random.get_state())  # noqa: NPY002 - the global generator must stay as it is
    np.testing.assert_array_equal(subset(whole, 25).x, part.x)
    assert str(np.random.get_state()) == before  # noqa: NPY002
    assert not np.array_equal(subset(whole, 25, seed=1).x, part.x)
    assert subset(whole, 100) is whole
    assert sorted(subset(whole, 2).y) == [3, 5, 8]


def test_margins() -> None:
    assert standard_error(0.8, 100, 400) == pytest.approx(0.03468, abs=5e-6)
    assert standard_error(0.8, 400, 400) == 0
    assert margin([0.8], [400], [400]) is None
    assert margin([0.8, 0.8], [100, 100], [400, 400]) == pytest.approx(1.96 * 0.03468 / np.sqrt(2), abs=1e-5)
    watch = Continual(experiences((40, 40, 40)), rows=10)
    watch.updated(1, Fixed(np.zeros((6, 6))))
    assert watch.summary()["rows"] == 10
    assert watch.summary()["acc_margin"] == pytest.approx(1.96 * standard_error(0.5, 10, 40))


# --- the curve as a file ----------------------------------------------------------------------------------------------


def test_a_curve_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "continual.csv"
    header = curve_header(["digits 0, 1 of ten", "b"], [6, 4])
    path.write_text(",".join(f'"{h}"' for h in header) + "\n1,10,0,3,\n2,20,0,6,\n3,30,1,5,0\n4,40,1,5")
    curve = read_curve(path)
    assert (curve.names, curve.sizes) == (("digits 0, 1 of ten", "b"), (6, 4))
    assert curve.update.tolist() == [1, 2, 3]
    assert curve.step.tolist() == [10, 20, 30]
    assert curve.experience.tolist() == [0, 0, 1]
    assert curve.right.tolist() == [[3, -1], [6, -1], [5, 0]]
    assert curve.switches.tolist() == [1]
    np.testing.assert_array_equal(curve.accuracy, [[0.5, np.nan], [1, np.nan], [5 / 6, 0]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("step,kind\n1,end\n", "not the curve"),
        ("", "not the curve"),
        ("update,step,experience,a of 5\n1,2,0\n1,2,0,3\n", "4 whole numbers"),
        ("update,step,experience,a of 5\n1,2,0,x\n", "4 whole numbers"),
    ],
)
def test_what_is_no_curve_says_so(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "continual.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_curve(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_curve(tmp_path / "none.csv")
