"""Source models for few shots: a body learnt under a cosine classifier, and one prototype of each base class.

The body and the rows W are trained by cross-entropy on 16 cos(f, W) over base classes only; then each row is replaced
by the mean feature of its class in evaluation mode (TEEN's base stage). The strength of calibration can be chosen on
the source's side. Ours: how. Bodies are trained that have never met a quarter of the base classes, nor a fifth of the
rows; those classes are pretended to be new, and the strength of the best harmonic mean over these rehearsals is kept
in the file with weights and prototypes. Unlike a split of the features of one body it shows classes as a body sees
them that did not learn them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..models.inputs import Columns, Pixels
from ..models.prototypes import STRENGTHS, Calibration, Cosine, Prototypes, class_means, split_scores
from ..streams import Array, InputError, StreamSpec
from .given_source import asked, embedded, fit, given_source, read_tensors
from .source_model import (
    Progress,
    Training,
    clean_rows,
    keep_tensors,
    kept_at,
    kept_tensors,
    source_key,
    tell,
    train,
    untrained,
)

FORMAT = 1
"""Counted up whenever the training or the file changes."""
REHEARSALS, HELD_OUT, PRETENDED = 4, 5, 4
"""Bodies that are trained to choose a strength; one row in five is held out, one class in four pretended to be new."""
PREFIX = "prototypes."
KEPT = ("means", "counts", "classes")
STRENGTH = PREFIX + "strength"


def prototype_source(
    spec: StreamSpec,
    inputs: Pixels | Columns,
    training: Training,
    calibration: Calibration,
    tuned: int = 0,
    *,
    source: str = "",
    keep: bool = True,
    progress: Progress = tell,
) -> tuple[nn.Module, Prototypes]:
    """A body, float[B, ...] to float[B, d], and prototypes of the source's classes; from the cache or trained now.

    calibration: for classes to come. tuned: choose its strength for so many shots; 0 keeps it. source: another model,
    as ``given_source`` takes it (its body is used, prototypes are made of the stream's clean rows), or a file that has
    both, as they are kept here. Raises ``InputError`` where there are no clean rows for what has to be made of them.
    """
    if source:
        return _given(source, spec, inputs, training, calibration, tuned, progress)
    x, y = clean_rows(spec, inputs)
    body = untrained(inputs, training, 2).body
    how = [calibration.rule, calibration.tau_s, tuned] if tuned else []  # weights do not follow from the calibration
    path = kept_at(source_key(spec, x, y, training, "prototypes", FORMAT, *how))
    kept = kept_tensors(path) if keep else None
    if kept is not None and _whole(body, kept) and (STRENGTH in kept) == bool(tuned):
        return body.eval(), _prototypes(kept, calibration)
    if tuned:
        body, prototypes = prototype_source(spec, inputs, training, calibration, keep=keep, progress=progress)
        prototypes.calibration = rehearsed(inputs, x, y, training, calibration, tuned, progress)
    else:
        train_cosine(body, inputs.tensor(x), y, training, progress)
        prototypes = _of_rows(body, inputs, x, y, calibration)
    if keep:
        keep_tensors(_tensors(body, prototypes, tuned), path, progress)
    return body.eval(), prototypes


def prototypes_of(
    model: nn.Module, name: str, spec: StreamSpec, inputs: Pixels | Columns, calibration: Calibration
) -> tuple[nn.Module, Prototypes]:
    """Body and prototypes of a model that is there: its own where they are its head, else those of the clean rows.

    Raises ``InputError`` where it has no body, or none that takes the rows, or there are no clean rows.
    """
    body, head = getattr(model, "body", None), getattr(model, "head", None)
    if not isinstance(body, nn.Module):
        raise InputError(f"{name} has no body, whose features prototypes could be means of")
    asked(body, f"the body of {name}", inputs)
    if isinstance(head, Prototypes):
        return body, head
    x, y = clean_rows(spec, inputs)
    return body.eval(), _of_rows(body, inputs, x, y, calibration)


def train_cosine(body: nn.Module, x: Tensor, y: Array, training: Training, progress: Progress = tell) -> None:
    """Train the body in place, with a row for each class that there is; the rows are thrown away."""
    classes, place = np.unique(y, return_inverse=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        rows = Cosine(embedded(body, x[:1]).shape[1], len(classes))
    train(nn.Sequential(body, rows), x, torch.from_numpy(place.astype(np.int64)), training, progress)
    body.eval()


def rehearsed(
    inputs: Pixels | Columns,
    x: Array,
    y: Array,
    training: Training,
    calibration: Calibration,
    shots: int,
    progress: Progress = tell,
) -> Calibration:
    """The calibration with the strength that serves classes best which the body has not met, for so many shots.

    x, y: the clean rows. The least of the best strengths.
    """
    classes = np.unique(y)
    if len(classes) < 2 or min(np.unique(y, return_counts=True)[1]) < 2:
        raise InputError("to choose a strength of calibration needs two clean classes of two rows each")
    rng = np.random.default_rng(training.seed)
    scores = dict.fromkeys(STRENGTHS[calibration.rule], 0.0)
    order = rng.permutation(classes)
    new = max(1, round(len(classes) / PRETENDED))
    for turn in range(REHEARSALS):
        progress(f"calibration: rehearsal {turn + 1} of {REHEARSALS}")
        pretended = np.roll(order, -turn * new)[:new]
        held = np.concatenate([rng.permutation(np.flatnonzero(y == c))[: _fifth(y == c)] for c in classes])
        asked = np.isin(np.arange(len(y)), held)
        met = ~asked & ~np.isin(y, pretended)
        body = untrained(inputs, training, 2).body
        train_cosine(body, inputs.tensor(x[met]), y[met], training, lambda _: None)
        features, codes = embedded(body, inputs.tensor(x)), torch.from_numpy(np.asarray(y, np.int64))
        rest, held_out = torch.from_numpy(~asked), torch.from_numpy(asked)
        found = split_scores(
            features[rest],
            codes[rest],
            features[held_out],
            codes[held_out],
            shots,
            calibration.rule,
            tau_s=calibration.tau_s,
            seed=training.seed,
            pretended=torch.from_numpy(pretended),
        )
        scores = {strength: score + found[strength] for strength, score in scores.items()}
    best = max(scores, key=lambda strength: (scores[strength], -strength))
    progress(f"calibration: {calibration.rule} of strength {best:g} for {shots} shots")
    return replace(calibration, strength=best)


def _fifth(rows: Array) -> int:
    return max(1, int(rows.sum()) // HELD_OUT)


def _of_rows(body: nn.Module, inputs: Pixels | Columns, x: Array, y: Array, calibration: Calibration) -> Prototypes:
    codes = torch.from_numpy(np.ascontiguousarray(y, np.int64))
    classes, means, counts = class_means(embedded(body, inputs.tensor(x)), codes)
    try:
        return Prototypes(means, counts, classes, calibration)
    except ValueError as fault:
        raise InputError(f"the source model gives no prototypes: {fault}") from None


def _tensors(body: nn.Module, prototypes: Prototypes, tuned: int) -> dict[str, Tensor]:
    """What is kept: weights, prototypes, and the strength, where it was chosen."""
    found = {f"body.{k}": v for k, v in body.state_dict().items()}
    found |= {PREFIX + k: getattr(prototypes, k) for k in KEPT}
    strength = torch.tensor(prototypes.calibration.strength, dtype=torch.float64)
    return {**found, STRENGTH: strength} if tuned else found


def _whole(body: nn.Module, kept: dict[str, Tensor]) -> bool:
    """Whether the file has all that ``_tensors`` keeps; the body then has its weights."""
    if not {PREFIX + k for k in KEPT} <= kept.keys():
        return False
    try:
        body.load_state_dict({k.removeprefix("body."): v for k, v in kept.items() if k.startswith("body.")})
    except RuntimeError:
        return False
    return True


def _prototypes(kept: dict[str, Tensor], calibration: Calibration) -> Prototypes:
    if STRENGTH in kept:
        calibration = replace(calibration, strength=float(kept[STRENGTH]))
    means, counts, classes = (kept[PREFIX + k] for k in KEPT)
    return Prototypes(means, counts, classes, calibration)


def _given(
    source: str,
    spec: StreamSpec,
    inputs: Pixels | Columns,
    training: Training,
    calibration: Calibration,
    tuned: int,
    progress: Progress,
) -> tuple[nn.Module, Prototypes]:
    """A file with prototypes as it is; of any other source its body, with prototypes of the clean rows."""
    untuned = InputError(f"source {source} brings no chosen strength of calibration; say rule=fixed or rule=shrink")
    kept = read_tensors(Path(source)) if Path(source).is_file() else {}
    if not any(k.startswith(PREFIX) for k in kept):
        if tuned:
            raise untuned
        net = given_source(source, spec, inputs, training, progress=progress)
        return prototypes_of(net, f"source {source}", spec, inputs, calibration)
    if tuned and STRENGTH not in kept:
        raise untuned
    if not tuned:
        kept.pop(STRENGTH, None)
    if spec.source is not None:
        clean_rows(spec, inputs)
    body = untrained(inputs, training, 2).body
    weights = {k.removeprefix("body."): v for k, v in kept.items() if not k.startswith(PREFIX)}
    fit(body, weights, f"{source}: body of model {training.model}")
    try:
        return body.eval(), _prototypes(kept, calibration)
    except (KeyError, ValueError) as fault:
        raise InputError(f"{source}: its prototypes are not whole: {fault}") from None
