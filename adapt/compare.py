"""Several learners over one stream, each under several seeds: the same run as ever, one after the other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..streams import InputError
from .config import RunConfig, resolve
from .folder import make_folder, to_json, write_whole
from .learners import learner_params
from .runs import Run, finished, signals_stop

SUMMARIES = "summaries.json"


@dataclass(frozen=True)
class Outcome:
    """What a comparison gave: a summary per run, in order, and whether it was interrupted."""

    summaries: list[dict[str, Any]]
    interrupted: bool


def plan(
    given: Mapping[str, Any], learners: Sequence[str], seeds: Sequence[int], settings: Sequence[str] = ()
) -> list[RunConfig]:
    """A configuration per learner and seed, learner by learner.

    A setting goes to every learner that has its key (and to the stream, if that has it); one that nobody has is an
    ``InputError``. ``NAME.key=value`` with the name of one of the learners is for that one alone, and overrules the
    others.
    """
    if len(set(learners)) != len(learners) or not all(learners):
        raise InputError(f"--learners: names must be given once each, not {','.join(learners)}")
    known = {name: {f.name for f in fields(learner_params(name))} for name in learners}

    def concern(name: str) -> list[str]:
        shared, own = [], []
        for setting in settings:
            left, equals, value = setting.partition("=")
            owner, _, key = left.strip().rpartition(".")
            if owner == name:
                own.append(f"learner.{key}{equals}{value}")
            elif owner not in known and (
                owner == "stream" or key in known[name] or not any(key in names for names in known.values())
            ):
                shared.append(setting)
        return shared + own

    return [
        resolve({**given, "learner": name, "seed": seed}, settings=concern(name)) for name in learners for seed in seeds
    ]


def run_all(
    configs: Sequence[RunConfig],
    out: Path | None,
    *,
    watch: Callable[[Run], None],
    start: Callable[..., Run] = Run,
    resume: bool = False,
) -> Outcome:
    """Run them one after the other; with ``out``, each in a folder of its own, and all summaries in one file.

    start: makes a run, called like ``Run(config, folder, resume=...)``. watch: steps through it (``for record in
    run.steps()``) and shows what it likes. Resuming takes over the finished runs and goes on with the one that is not.
    """
    if out is not None:
        if (out / SUMMARIES).exists() and not resume:
            raise InputError(f"--out {out}: holds a comparison already; --resume continues it")
        make_folder(out)
    summaries = []
    for config in configs:
        folder = None if out is None else out / folder_name(config)
        summary = finished(folder, config) if resume and folder is not None else None
        if summary is None:
            run = start(config, folder, resume=resume)
            with signals_stop(run):
                watch(run)
            summary = run.summary()
        summaries.append(summary)
        if out is not None:
            write_whole(out / SUMMARIES, to_json(summaries))
        if summary["status"] != "done":
            return Outcome(summaries, interrupted=True)
    return Outcome(summaries, interrupted=False)


def fresh_folder(wanted: Path) -> Path:
    """The folder, or the first of ``NAME-2``, ``NAME-3``, ... that does not exist yet."""
    number, folder = 1, wanted
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def folder_name(config: RunConfig) -> str:
    """``hoeffding-tree-seed0``: the learner and the seed, safe on every file system.

    >>> folder_name(RunConfig(learner="river:tree.HoeffdingTreeClassifier", seed=3))
    'river-tree.HoeffdingTreeClassifier-seed3'
    """
    return f"{re.sub(r'[^A-Za-z0-9._+-]+', '-', config.learner)}-seed{config.seed}"


def run_folders(out: Path) -> list[Path]:
    """The run folders of a comparison, in the order of its summaries."""
    try:
        summaries = json.loads((out / SUMMARIES).read_text(encoding="utf-8"))
        names = [folder_name(RunConfig(learner=s["learner"], seed=s["seed"])) for s in summaries]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{out / SUMMARIES}: not the summaries of a comparison") from None
    return [out / name for name in names]
