"""Prototypes: a cosine classifier whose rows are class means, and new rows made from few shots without training.

The calibration is that of Wang et al., Few-shot class-incremental learning via training-free prototype calibration
(TEEN), NeurIPS 2023, in the form of the authors' code: the mean of the shots of a new class is pulled towards the
base classes that it resembles. Yu, Lu, Zhang (CSFA, arXiv 2506.05736) promise a training-free calibration that fuses
the two dynamically, but no formula of theirs is known to us: the rule ``shrink``, the choice of its strength by
classes that are only pretended to be new, and the treatment of classes that are known already are our choice.

Letters: B rows, d features, C classes, n0 base classes, N new ones, K shots of a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

Rule = Literal["fixed", "shrink"]

EPS = 1e-12
"""A vector that is shorter than this has no direction."""

STRENGTHS: dict[Rule, tuple[float, ...]] = {
    "fixed": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "shrink": (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
}
"""What ``choose_calibration`` tries by default: values of lam, and of kappa."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """lam, the weight of the base mixture in a new row, as a function of the number of shots K.

    fixed: lam = strength. shrink: lam = strength / (strength + K), which fades as shots come; it is the empirical Bayes
    weight if strength is the variance within classes over that between them. tau_s: how sharply the mixture prefers the
    base classes that are nearest (it multiplies the cosine). Raises ``ValueError`` for values that cannot be, lam = 1
    among them: new classes with the same neighbours would coincide.

    >>> Calibration("shrink", 0.5).lam(torch.tensor([1, 5])).tolist()
    [0.3333333333333333, 0.09090909090909091]
    """

    rule: Rule = "fixed"
    strength: float = 0.1
    tau_s: float = 16.0

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ValueError(f"rule must be fixed or shrink, not {self.rule!r}")
        most = 1.0 if self.rule == "fixed" else float("inf")
        if not 0 <= self.strength < most:
            raise ValueError(f"the strength of {self.rule} must be 0 or more and below {most}, not {self.strength}")
        if not 0 <= self.tau_s < float("inf"):
            raise ValueError(f"tau_s must be finite and not negative, it is {self.tau_s}")

    def lam(self, shots: Tensor) -> Tensor:
        """float64[N] of int64[N]."""
        shots = shots.double()
        if self.rule == "fixed":
            return torch.full_like(shots, self.strength)
        return self.strength / (self.strength + shots)


def fuse(raw: Tensor, base: Tensor, lam: float | Tensor, tau_s: float = 16.0) -> Tensor:
    """[N, d]: raw class means [N, d] pulled towards mixtures of the base rows [n0, d] (TEEN).

    With u = raw and v = base, all of length 1:

        a_cb = softmax over b of tau_s <u_c, v_b>,  r_c = the direction of sum_b a_cb v_b,  (1 - lam) u_c + lam r_c.

    lam: in 0..1, one or [N]. Lengths of raw and base rows do not matter; those of the results say nothing.
    """
    u, v = normalize(raw, dim=-1, eps=EPS), normalize(base, dim=-1, eps=EPS)
    mixture = normalize(torch.softmax(tau_s * (u @ v.T), -1) @ v, dim=-1, eps=EPS)
    weight = torch.as_tensor(lam, dtype=u.dtype, device=u.device).reshape(-1, 1)
    return (1 - weight) * u + weight * mixture


def class_means(features: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Classes int64[C] (rising), means [C, d] and counts int64[C] of features [B, d] with labels int64[B]."""
    classes, place, counts = torch.unique(y, return_inverse=True, return_counts=True)
    sums = features.new_zeros((len(classes), features.shape[1])).index_add_(0, place, features)
    return classes, sums / counts[:, None].to(sums.dtype), counts


class Prototypes(nn.Module):
    """Logits tau_cls cos(feature, row) of one row per class; the rows are never trained, and grow with new classes.

    means: [n0, d], mean features of the base classes; counts: int64[n0], of how many rows; classes: int64[n0], their
    codes (0 to n0 - 1 by default). Raises ``ValueError`` where they do not fit, where a code comes twice and where a
    mean has no direction. No row ever has a gradient; that of the logits reaches the features only. For a network these
    buffers are no part of ``state_dict``, since they grow: ``state`` and ``load`` are theirs.

    >>> prototypes = Prototypes(torch.eye(2), torch.tensor([9, 9]))
    >>> prototypes.add(torch.tensor([[-1.0, 0.1], [-3.0, -0.1], [0.0, 0.0]]), torch.tensor([7, 7, 7]))
    1
    >>> prototypes.answers(torch.tensor([[1.0, 0.2], [-1.0, 0.2]])).tolist()
    [0, 7]
    """

    means: Tensor
    rows: Tensor
    counts: Tensor
    classes: Tensor

    def __init__(
        self,
        means: Tensor,
        counts: Tensor,
        classes: Tensor | None = None,
        calibration: Calibration | None = None,
        tau_cls: float = 16.0,
    ) -> None:
        super().__init__()
        codes = torch.arange(len(means), device=means.device) if classes is None else classes
        if means.dim() != 2 or not len(means) or counts.shape != codes.shape or codes.shape != means.shape[:1]:
            raise ValueError("prototypes need means [classes, features], and a count and a code for each of them")
        if len(codes.unique()) < len(codes) or bool((counts < 1).any()):
            raise ValueError("every class has one code and a count of at least 1")
        if not bool(_directed(means).all()):
            raise ValueError("a prototype has no direction: it is zero or not finite")
        self.base, self.tau_cls = len(means), tau_cls
        self.calibration = Calibration() if calibration is None else calibration
        with torch.inference_mode(False), torch.no_grad():
            means = means.clone()
            self.register_buffer("means", means, persistent=False)
            self.register_buffer("rows", normalize(means, dim=-1, eps=EPS), persistent=False)
            self.register_buffer("counts", counts.clone(), persistent=False)
            self.register_buffer("classes", codes.clone(), persistent=False)

    def __len__(self) -> int:
        """How many classes are known."""
        return len(self.rows)

    def forward(self, features: Tensor) -> Tensor:
        """[B, C] of [B, d]: logits of the classes in the order of ``classes``."""
        return self.tau_cls * (normalize(features, dim=-1, eps=EPS) @ self.rows.T)

    def answers(self, features: Tensor) -> Tensor:
        """int64[B] of [B, d]: the codes of the nearest rows."""
        return self.classes[self(features).argmax(-1)]

    def add(self, features: Tensor, y: Tensor) -> int:
        """Take shots [n, d] of the classes int64[n]; returns how many were refused for having no direction.

        A new class gets a calibrated row, by base classes only. For a class that is known the mean over all its shots
        counts, the earlier ones included, so that shots in two parts are as good as in one; a base class stays a plain
        mean. No other row is touched.
        """
        with torch.inference_mode(False), torch.no_grad():  # rows made in inference mode would not do for adapting
            features = features.detach().to(self.means, copy=True)
            y = y.to(self.classes, copy=True)
            kept = _directed(features)
            refused = int((~kept).sum())
            for code, mean, count in zip(*class_means(features[kept], y[kept]), strict=True):
                refused += self._take(code, mean, count)
        return refused

    def _take(self, code: Tensor, mean: Tensor, count: Tensor) -> int:
        """Returns how many shots were refused, since they and earlier ones cancel: all or none."""
        shots = int(count)
        here = self.classes == code
        known = bool(here.any())
        if known:
            before = self.counts[here][0]
            count = before + count
            mean = torch.lerp(self.means[here][0], mean, shots / float(count))
        if not bool(_directed(mean)):
            return shots
        row = mean
        if not (known and int(here.nonzero()) < self.base):
            lam = self.calibration.lam(count[None])
            row = fuse(mean[None], self.rows[: self.base], lam, self.calibration.tau_s)[0]
        new = {"means": mean, "rows": normalize(row, dim=-1, eps=EPS), "counts": count, "classes": code}
        for name, value in new.items():
            old: Tensor = getattr(self, name)
            setattr(self, name, _replaced(old, here, value) if known else torch.cat([old, value[None]]))
        return 0

    def state(self) -> dict[str, Any]:
        """All that answers depend on: a tree of tensors (by reference), numbers and strings."""
        rule = {"rule": self.calibration.rule, "strength": self.calibration.strength, "tau_s": self.calibration.tau_s}
        tensors = {"means": self.means, "rows": self.rows, "counts": self.counts, "classes": self.classes}
        return {**tensors, "base": self.base, "tau_cls": self.tau_cls, "calibration": rule}

    def load(self, state: dict[str, Any]) -> None:
        """Take over a copy of a state, whatever the number of its classes."""
        with torch.inference_mode(False), torch.no_grad():
            for name in ("means", "rows", "counts", "classes"):
                setattr(self, name, torch.as_tensor(state[name]).to(self.means.device, copy=True))
        self.base, self.tau_cls = int(state["base"]), float(state["tau_cls"])
        self.calibration = Calibration(**state["calibration"])

    def extra_repr(self) -> str:
        return f"classes={len(self)}, base={self.base}, features={self.rows.shape[1]}, tau_cls={self.tau_cls}"


class Cosine(nn.Module):
    """Logits 16 cos(feature, row) with rows that are trained, float[C, d]: what a body learns under before prototypes
    take its place. The rows are drawn from torch's global generator.

    >>> Cosine(4, 3)(torch.ones(2, 4)).shape
    torch.Size([2, 3])
    """

    def __init__(self, features: int, classes: int, tau_cls: float = 16.0) -> None:
        super().__init__()
        self.tau_cls = tau_cls
        self.weight = nn.Parameter(torch.randn(classes, features) / features**0.5)

    def forward(self, features: Tensor) -> Tensor:
        return self.tau_cls * (normalize(features, dim=-1, eps=EPS) @ normalize(self.weight, dim=-1, eps=EPS).T)


def split_scores(
    features: Tensor,
    y: Tensor,
    queries: Tensor,
    queries_y: Tensor,
    shots: int,
    rule: Rule = "fixed",
    *,
    strengths: Sequence[float] | None = None,
    tau_s: float = 16.0,
    share: float = 0.25,
    draws: int = 10,
    seed: int = 0,
    pretended: Tensor | None = None,
) -> dict[float, float]:
    """What each strength of a rule is worth where a share of the base classes is pretended to be new.

    features, y: [n, d] and int64[n], the base classes' training rows; queries, queries_y: held-out rows of them.
    In each draw other classes are pretended to be new, with ``shots`` of their training rows each; the score is the
    harmonic mean of the accuracy on the others and on these, in 0..1, averaged over draws. pretended: int64[k], these
    classes in every draw. Raises ``ValueError`` where there are fewer than two classes, or no held-out rows of one.
    """
    classes, means, counts = class_means(features, y)
    new = max(1, round(share * len(classes))) if pretended is None else int(torch.isin(classes, pretended).sum())
    if new < 1 or shots < 1 or draws < 1 or new >= len(classes):
        raise ValueError("to pretend needs shots, draws, and two classes of which one stays")
    if not bool(torch.isin(classes, queries_y).all()):
        raise ValueError("every base class needs held-out rows")
    scores = dict.fromkeys(STRENGTHS[rule] if strengths is None else map(float, strengths), 0.0)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        order = torch.randperm(len(classes), generator=generator).to(y.device)
        if pretended is not None:
            order = torch.isin(classes, pretended).logical_not().sort(stable=True).indices
        chosen, kept = order[:new], order[new:]
        drawn = torch.cat([_some_of(y == c, shots, generator) for c in classes[chosen]])
        asked = torch.isin(queries_y, classes[chosen])
        for strength in scores:
            trial = Prototypes(means[kept], counts[kept], classes[kept], Calibration(rule, strength, tau_s))
            trial.add(features[drawn], y[drawn])
            right = (trial.answers(queries) == queries_y).double()
            b, n = float(right[~asked].mean()), float(right[asked].mean())
            scores[strength] += 2 * b * n / (b + n) / draws if b + n else 0.0
    return scores


def choose_calibration(
    features: Tensor, y: Tensor, queries: Tensor, queries_y: Tensor, shots: int, rule: Rule = "fixed", **options: Any
) -> Calibration:
    """The rule with the strength that ``split_scores`` (of the same arguments) finds best; the least of equals."""
    scores = split_scores(features, y, queries, queries_y, shots, rule, **options)
    best = max(scores.values())
    least = min(strength for strength, score in scores.items() if score == best)
    return Calibration(rule, least, options.get("tau_s", Calibration().tau_s))


def _directed(vectors: Tensor) -> Tensor:
    """bool[...] of [..., d]: whether the length is finite and not zero."""
    length = vectors.norm(dim=-1)
    return (length > EPS) & length.isfinite()


def _replaced(rows: Tensor, where: Tensor, value: Tensor) -> Tensor:
    rows = rows.clone()  # a state that was given out stays as it was
    rows[where] = value
    return rows


def _some_of(mask: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """int64[<= n]: places where the mask holds, drawn without replacement."""
    places = mask.nonzero()[:, 0]
    return places[torch.randperm(len(places), generator=generator)[:n].to(places.device)]
