"""The metrics as pure functions of labels and answers, and the table that ``driftway metrics`` prints.

Letters: B rows, C classes. y: int64[B] class codes 0..C-1, or float64[B]. output: what was answered, like y; an answer
outside 0..C-1 is wrong and belongs to no class. A value that is not defined (no rows, or a division by zero) is None,
never a made-up number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[Any]

CLIP = 1e-15
"""The least probability that the log loss believes."""


def accuracy(y: ArrayLike, output: ArrayLike) -> float | None:
    """Fraction of rows answered rightly: ``p0 = (1/B) sum_i [output_i = y_i]``.

    >>> round(accuracy([0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0]), 5)
    0.66667
    """
    hits = np.asarray(y) == np.asarray(output)
    return float(hits.mean()) if hits.size else None


def balanced_accuracy(y: ArrayLike, output: ArrayLike) -> float | None:
    """Mean of the recalls of the classes that occur in y: ``(1/C) sum_c hits_c / rows_c``.

    K. H. Brodersen et al., "The balanced accuracy and its posterior distribution", ICPR 2010.

    >>> balanced_accuracy([0, 0, 0, 1], [0, 0, 0, 0])
    0.5
    """
    y, output = np.asarray(y), np.asarray(output)
    recalls = [np.mean(output[y == c] == c) for c in np.unique(y)]
    return float(np.mean(recalls)) if recalls else None


def base_accuracy(y: ArrayLike, output: ArrayLike, base: int) -> float | None:
    """Accuracy on the rows of the base classes 0..base-1, those that the source model knew; any class may be answered.

    >>> base_accuracy([0, 1, 2, 2], [0, 2, 2, 1], base=2)
    0.5
    """
    y = np.asarray(y)
    return accuracy(y[y < base], np.asarray(output)[y < base])


def new_accuracy(y: ArrayLike, output: ArrayLike, base: int) -> float | None:
    """Accuracy on the rows of the classes that came later, base and up; any class may be answered.

    >>> new_accuracy([0, 1, 2, 2, 3], [0, 2, 2, 1, 3], base=2) == 2 / 3
    True
    """
    y = np.asarray(y)
    return accuracy(y[y >= base], np.asarray(output)[y >= base])


def harmonic_mean(base: float | None, new: float | None) -> float | None:
    """``2 b n / (b + n)`` of base and new accuracy: no better than twice the worse; 0 (its limit) where both are 0.

    >>> harmonic_mean(0.75, 0.25), harmonic_mean(0.0, 0.0), harmonic_mean(0.75, None)
    (0.375, 0.0, None)
    """
    if base is None or new is None:
        return None
    return 2.0 * base * new / (base + new) if base + new else 0.0


def beyond(p0: float | None, pc: float | None) -> float | None:
    """What a score has beyond a reference, as a share of what was to be had: ``(p0 - pc) / (1 - pc)``.

    1 is perfect, 0 no better than the reference, negative worse; None where the reference is perfect itself.

    >>> beyond(0.75, 0.5), beyond(0.5, 0.75), beyond(1.0, 1.0)
    (0.5, -1.0, None)
    """
    if p0 is None or pc is None or pc == 1.0:
        return None
    return (p0 - pc) / (1.0 - pc)


def kappa(y: ArrayLike, output: ArrayLike) -> float | None:
    """Cohen's kappa: accuracy beyond an answer by chance with the same class frequencies.

    ``(p0 - pc) / (1 - pc)`` with ``pc = sum_c P(output = c) P(y = c)``. J. Cohen, "A coefficient of agreement for
    nominal scales", Educational and Psychological Measurement 20, 1960.

    >>> round(kappa([0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0]), 5)
    0.33333
    """
    y, output = np.asarray(y), np.asarray(output)
    if not y.size:
        return None
    chance = sum(float(np.mean(y == c)) * float(np.mean(output == c)) for c in np.unique(y))
    return beyond(accuracy(y, output), chance)


def majority_answers(y: ArrayLike) -> Array:
    """int64[B]: the most frequent of the labels before each row (the lowest such class); -1 before any label.

    The row's own label does not count yet: counting it first is a leak that flatters the baseline.

    >>> majority_answers([0, 0, 1, 1, 1, 0]).tolist()
    [-1, 0, 0, 0, 0, 1]
    """
    y = np.asarray(y, dtype=np.int64)
    counts = np.zeros(int(y.max(initial=-1)) + 2, dtype=np.int64)
    answers = np.full(len(y), -1, dtype=np.int64)
    for i, label in enumerate(y):
        answers[i] = int(counts.argmax()) if i else -1
        counts[label] += 1
    return answers


def no_change_answers(y: ArrayLike) -> Array:
    """int64[B]: the label before each row; -1 before any label.

    >>> no_change_answers([0, 0, 1]).tolist()
    [-1, 0, 0]
    """
    return np.concatenate([[-1], np.asarray(y, dtype=np.int64)])[: len(np.asarray(y))]


def kappa_m(y: ArrayLike, output: ArrayLike, majority: ArrayLike | None = None) -> float | None:
    """Accuracy beyond the majority class: ``(p0 - pm) / (1 - pm)``, pm the accuracy of the majority answers.

    majority: int64[B] what that baseline answered (by default ``majority_answers(y)``; with delayed labels it knew
    less). A. Bifet et al., "Efficient online evaluation of big data stream classifiers", KDD 2015.

    >>> round(kappa_m([0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0]), 5)
    0.6
    >>> round(kappa_m([0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0], majority=[0, 0, 0, 0, 0, 1]), 5)
    0.5
    """
    answers = majority_answers(y) if majority is None else majority
    return beyond(accuracy(y, output), accuracy(y, answers))


def kappa_t(y: ArrayLike, output: ArrayLike, no_change: ArrayLike | None = None) -> float | None:
    """Accuracy beyond the answer "as last time": ``(p0 - pe) / (1 - pe)``, pe the accuracy of the no-change answers.

    Negative on a stream whose labels come in runs means that the features were of no use. no_change: int64[B], by
    default ``no_change_answers(y)``. I. Žliobaitė et al., "Evaluation methods and decision theory for classification of
    streaming data with temporal dependence", Machine Learning 98, 2015.

    >>> kappa_t([0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0], no_change=[0, 0, 0, 1, 1, 1])
    0.0
    """
    answers = no_change_answers(y) if no_change is None else no_change
    return beyond(accuracy(y, output), accuracy(y, answers))


def logloss(y: ArrayLike, scores: ArrayLike) -> float | None:
    """Mean of ``-log p_i[y_i]``, p clipped to [1e-15, 1 - 1e-15]; natural logarithm.

    scores: float64[B, C] class probabilities. A class beyond C (not seen by the model yet) and a probability that is no
    finite number count as probability 0, which is clipped.

    >>> round(logloss([0, 1], [[0.5, 0.5], [0.2, 0.8]]), 5)
    0.45815
    >>> round(logloss([2], [[0.5, 0.5]]), 3)
    34.539
    """
    y, scores = np.asarray(y, dtype=np.int64), np.asarray(scores, dtype=np.float64)
    if not y.size:
        return None
    known = y < scores.shape[1]
    p = np.zeros(len(y))
    p[known] = scores[known.nonzero()[0], y[known]]
    p = np.where(np.isfinite(p), p, 0.0)
    return float(-np.log(np.clip(p, CLIP, 1.0 - CLIP)).mean())


def mae(y: ArrayLike, output: ArrayLike) -> float | None:
    """Mean absolute error ``(1/B) sum_i |output_i - y_i|``, in the target's unit.

    >>> mae([1.0, 2.0, 4.0], [1.0, 3.0, 2.0])
    1.0
    """
    errors = np.abs(np.asarray(output, dtype=np.float64) - np.asarray(y, dtype=np.float64))
    return float(errors.mean()) if errors.size else None


def rmse(y: ArrayLike, output: ArrayLike) -> float | None:
    """Root of the mean squared error ``sqrt((1/B) sum_i (output_i - y_i)^2)``, in the target's unit.

    >>> round(rmse([1.0, 2.0, 4.0], [1.0, 3.0, 2.0]), 5)
    1.29099
    """
    errors = np.asarray(output, dtype=np.float64) - np.asarray(y, dtype=np.float64)
    return float(np.sqrt(np.mean(errors * errors))) if errors.size else None


def faded(values: ArrayLike, fading: float = 0.999) -> Array:
    """float64[B]: the mean of the values so far, older ones faded: ``S_t / N_t``, both ``X_t = x_t + fading X_{t-1}``.

    The newest ``1 / (1 - fading)`` values make up two thirds of it. J. Gama, R. Sebastião, P. P. Rodrigues, "On
    evaluating stream learning algorithms", Machine Learning 90, 2013.

    >>> faded([0.0, 1.0, 0.0], 0.9).round(5).tolist()
    [0.0, 0.52632, 0.3321]
    """
    total, weight, means = 0.0, 0.0, []
    for value in np.asarray(values, dtype=np.float64):
        total, weight = float(value) + fading * total, 1.0 + fading * weight
        means.append(total / weight)
    return np.array(means)


@dataclass(frozen=True, slots=True)
class Metric:
    """A row of the table. direction: higher, lower or none is better. citation: where it is defined."""

    name: str
    meaning: str
    formula: str
    direction: str
    citation: str


_PREQUENTIAL = "A. P. Dawid, JRSS A 147, 1984; J. Gama et al., Machine Learning 90, 2013"
_GAP = "M. De Lange, G. M. van de Ven, T. Tuytelaars, Continual evaluation for lifelong learning, ICLR 2023"
_GENERALISED = "Y. Xian, B. Schiele, Z. Akata, Zero-shot learning: the good, the bad and the ugly, CVPR 2017"
_LANGUAGE = "Zhao, Li, Lu, Gong, LLaVA-DyMoE, arXiv 2603.27481, 2026"
_DETECTION = "J. Gama et al., A survey on concept drift adaptation, ACM Computing Surveys 46, 2014"

METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("accuracy", "fraction of rows answered rightly", "p0 = mean [output = y]", "higher", _PREQUENTIAL),
        Metric(
            "balanced_accuracy", "accuracy with every class of the same weight",
            "mean over the classes met of hits_c / rows_c", "higher", "K. H. Brodersen et al., ICPR 2010",
        ),
        Metric(
            "base_accuracy", "accuracy on rows of the classes that the source model knew",
            "b = mean [output = y] over rows with y < base", "higher", _GENERALISED,
        ),
        Metric(
            "new_accuracy", "accuracy on rows of the classes that came later",
            "n = mean [output = y] over rows with y >= base", "higher", _GENERALISED,
        ),
        Metric(
            "harmonic_mean", "base and new accuracy in one figure, at most twice the worse of them",
            "2 b n / (b + n)", "higher", _GENERALISED,
        ),
        Metric(
            "kappa", "accuracy beyond chance with the same class frequencies",
            "(p0 - pc) / (1 - pc), pc = sum_c P(output = c) P(y = c)", "higher",
            "J. Cohen, Educational and Psychological Measurement 20, 1960",
        ),
        Metric(
            "kappa_m", "accuracy beyond the most frequent class so far",
            "(p0 - pm) / (1 - pm), pm = accuracy of the majority baseline", "higher", "A. Bifet et al., KDD 2015",
        ),
        Metric(
            "kappa_t", "accuracy beyond repeating the last label; negative: the features were of no use",
            "(p0 - pe) / (1 - pe), pe = accuracy of the no-change baseline", "higher",
            "I. Žliobaitė et al., Machine Learning 98, 2015",
        ),
        Metric(
            "logloss", "how surprised the scores were by the labels, in nats",
            "mean -log p[y], p clipped to 1e-15; 0 for a class not known yet", "lower",
            "I. J. Good, Rational decisions, JRSS B 14, 1952",
        ),
        Metric(
            "ece", "expected calibration error: how far confidence and accuracy lie apart",
            "sum_m n_m / n |acc(m) - conf(m)|, 15 bins of the top probability", "lower", "C. Guo et al., ICML 2017",
        ),
        Metric(
            "confidence_gap", "above 0 overconfident, below 0 underconfident (calibration.gap)",
            "mean of the top probability - accuracy", "none", "C. Guo et al., ICML 2017 (the sign is our addition)",
        ),
        Metric(
            "auc", "clicks: how well they are ranked; 0.5 is chance",
            "share of pairs of a click and a non-click with p(click) > p(other), ties half", "higher",
            "J. A. Hanley, B. J. McNeil, Radiology 143, 1982",
        ),
        Metric(
            "gauc", "clicks: how well they are ranked among the rows of one user",
            "sum_u n_u AUC_u / sum_u n_u over users with both classes", "higher",
            "H. Zhu et al., Optimized cost per click in Taobao display advertising, KDD 2017",
        ),
        Metric(
            "click_calibration", "clicks foretold over clicks that came (clicks.calibration)",
            "sum p / sum y; 1 is right, above it the model promises too much", "none",
            "X. He et al., Practical lessons from predicting clicks on ads at Facebook, ADKDD 2014",
        ),
        Metric(
            "shift_error", "error under each shift of the stream (shifts), mean over shifts of the same weight",
            "(1/K) sum_k wrong_k / rows_k", "lower", "D. Hendrycks, T. Dietterich, ICLR 2019, not normalised",
        ),
        Metric(
            "source_forgotten", "accuracy on the clean source rows lost since the start (source_domain.forgotten)",
            "accuracy before the first event - accuracy at the end", "lower",
            "S. Niu et al., Efficient test-time model adaptation without forgetting, ICML 2022",
        ),
        Metric(
            "drop", "accuracy lost from the first session to the last one (few_shot.drop)",
            "accuracy of session 0 - accuracy of the last session", "lower",
            "X. Tao et al., Few-shot class-incremental learning, CVPR 2020",
        ),
        Metric("mae", "mean absolute error, in the target's unit", "mean |output - y|", "lower", _PREQUENTIAL),
        Metric("rmse", "root of the mean squared error", "sqrt(mean (output - y)^2)", "lower", _PREQUENTIAL),
        Metric(
            "majority", "the score of answering the most frequent label that had arrived (regression: their mean)",
            "accuracy or MAE of that baseline", "none", "A. Bifet et al., KDD 2015",
        ),
        Metric(
            "no_change", "the score of answering the label that had arrived last",
            "accuracy or MAE of that baseline", "none", "I. Žliobaitė et al., Machine Learning 98, 2015",
        ),
        Metric(
            "window", "any of the above over the last rows only (accuracy_window)",
            "over the last w labelled rows (w = 1000)", "none",
            "A. Bifet, R. Kirkby, Data stream mining: a practical approach, 2009",
        ),
        Metric(
            "fading", "any of the above, older rows faded (accuracy_fading)",
            "S / N with S = x + f S, N = 1 + f N (f = 0.999)", "none",
            "J. Gama et al., Machine Learning 90, 2013",
        ),
        Metric(
            "drift_alarms", "rises of the error that ADWIN and Page-Hinkley found", "one per detector and 500 rows",
            "none", "A. Bifet, R. Gavaldà, SDM 2007; E. S. Page, Biometrika 41, 1954",
        ),
        Metric(
            "delay", "labelled rows from a known drift to a detector's first alarm; missed when there is none in time",
            "alarm - drift", "lower", _DETECTION,
        ),
        Metric(
            "false_alarms_per_1000", "alarms that no known drift explains", "1000 false alarms / labelled rows",
            "lower", _DETECTION,
        ),
        Metric(
            "depth", "how far the score fell after a known drift", "before - min of the score since the drift", "lower",
            _DETECTION,
        ),
        Metric(
            "recovery_rows", "rows from a known drift until the score is back (none: not recovered)",
            "first n with score >= before - tolerance, held for 50 rows", "lower", _DETECTION,
        ),
        Metric(
            "lost", "what the drop cost, in rows of wrong answers",
            "sum over rows of max(0, before - score) until recovery", "lower", _DETECTION,
        ),
        Metric(
            "acc", "accuracy on the held-out rows of every experience seen, each experience of the same weight",
            "(1/k) sum_{i<=k} A(i), k experiences seen", "higher", _GAP,
        ),
        Metric(
            "acc_margin", "half of the 95 % interval around acc where a part of the held-out rows stands for all",
            "1.96 sqrt(sum_i p_i (1 - p_i) / n_i (N_i - n_i) / (N_i - 1)) / k", "lower",
            "W. G. Cochran, Sampling techniques, 1977",
        ),
        Metric(
            "min_acc", "how deep the experiences that are over ever fell, at their worst evaluations since",
            "mean over i < k of min A(i) since the end of i; none while k = 1", "higher", _GAP,
        ),
        Metric(
            "wc_acc", "a lower bound of acc at every moment: now for the experience at hand, the worst for the others",
            "A(k) / k + (1 - 1/k) min_acc", "higher", _GAP,
        ),
        *(
            Metric(
                f"{short}{width}", f"the largest {move} of accuracy within {width} consecutive evaluations",
                f"(1/k) sum_{{i<=k}} max of {pair} over m < q < m + {width}, 0 if none", better, _GAP,
            )
            for short, move, pair, better in (
                ("wf", "drop", "A(i) at m - A(i) at q", "lower"), ("wp", "rise", "A(i) at q - A(i) at m", "higher"),
            )
            for width in (10, 100)
        ),
        Metric(
            "forgetting", "accuracy lost since each experience's own end",
            "mean over i < k of A(i) at the end of i - A(i)", "lower",
            "D. Lopez-Paz, M. Ranzato, NeurIPS 2017 (as minus bwt)",
        ),
        Metric(
            "forgetting_max", "accuracy lost since the best of the ends of experiences",
            "mean over i < k of (max of A(i) over the ends of i..k-1) - A(i)", "lower",
            "A. Chaudhry et al., Riemannian walk, ECCV 2018",
        ),
        Metric(
            "bwt", "backward transfer: what later learning did to earlier experiences", "-forgetting", "higher",
            "D. Lopez-Paz, M. Ranzato, Gradient episodic memory, NeurIPS 2017",
        ),
        Metric(
            "mfn", "mean final accuracy, as language models are reported: acc at the end",
            "(1/T) sum_{i<=T} A(i) after the last experience T (so far: at hand)", "higher", _LANGUAGE,
        ),
        Metric(
            "maa", "mean average accuracy: acc at the end of each experience, mean over these ends",
            "(1/k) sum_{t<=k} (1/t) sum_{i<=t} A(i) at the end of t (of k: now)", "higher", _LANGUAGE,
        ),
        Metric(
            "learning_accuracy", "how well each experience had been learnt when it ended",
            "(1/k) sum_{i<=k} A(i) at the end of i (of k: now)", "higher", "M. Riemer et al., ICLR 2019",
        ),
        Metric(
            "aaa", "average anytime accuracy", "mean of acc over all evaluations", "higher",
            "L. Caccia et al., New insights on reducing abrupt representation change, ICLR 2022",
        ),
        Metric(
            "gap_depth", "the stability gap: how far experiences that are over fall while the next one is learnt",
            "mean over switches s and i <= s of A(i) at s - min A(i) until the next switch", "lower",
            _GAP + " (the mean is our reading)",
        ),
        Metric(
            "gap_depth_relative", "the stability gap as a share of what was there before the switch",
            "mean of (A(i) at s - min A(i)) / A(i) at s, where that is not 0", "lower", _GAP + " (our reading)",
        ),
    )
}  # fmt: skip
"""All that evaluation reports, by name."""
