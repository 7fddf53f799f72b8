"""River's data sets and generators as streams. River is imported only here, and only when such a stream is opened."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from .sources import BLOCK, BlockStream, Position
from .spec import InputError, StreamSpec
from .table import Raw, Rules, TableBlocks, follow, settle

Pairs = Iterable[tuple[dict[Any, Any], Any]]


class RiverRows:
    """A table reader over pairs (x, y). To go back it makes the pairs anew and skips; ``make`` must repeat itself."""

    def __init__(self, name: str, make: Callable[[], Pairs], length: int | None = None, target: str = "y") -> None:
        self.name, self.length = name, length
        self.start: Position = {"row": 0}
        self._make = make
        self._pairs: Iterator[Any] = iter(make())
        first, _ = next(self._pairs)
        self._keys = tuple(first)
        self._cells = itemgetter(*self._keys) if len(self._keys) > 1 else lambda x: (x[self._keys[0]],)
        self._row = -1  # one row is gone: begin anew
        self.names = (*map(str, self._keys), target)

    def read(self, at: Position) -> Raw:
        row = at["row"]
        if row != self._row:
            pairs = iter(self._make())
            self._pairs = islice(pairs, row, None) if row else pairs
        count = BLOCK if self.length is None else min(BLOCK, self.length - row)
        block = list(islice(self._pairs, count))
        self._row = row + len(block)
        try:
            rows = [self._cells(x) for x, _ in block]
        except KeyError:
            rows = [tuple(x.get(key) for key in self._keys) for x, _ in block]
        labels = [int(y) if y is True or y is False else y for _, y in block]
        columns = [*zip(*rows, strict=True), labels] if block else [()] * len(self.names)
        more = len(block) == BLOCK and self._row != self.length
        return Raw(np.arange(row, self._row), columns, {}, {"row": self._row} if more else None, plain=True)


def generator(make: Callable[[], Pairs], spec: StreamSpec) -> BlockStream:
    """An endless generator (or one that ends) under a spec that is known beforehand."""
    reader = RiverRows(spec.name, make, spec.length, spec.target_name)
    return BlockStream(spec, TableBlocks(reader, follow(reader, spec)))


def open_river(name: str, *, seed: int = 0, settings: Mapping[str, Any] | None = None) -> BlockStream:
    """``river:Phishing``, ``river:datasets.Phishing`` or ``river:synth.SEA``: any data set of river.

    settings: arguments of the class, and ``n``: rows to give (needed to end a generator). Types are settled from all
    rows of a bundled set and from the first 1,000 of a generator. Raises InputError for an unknown class or argument,
    a set with several outputs, and one that river would have to download first.
    """
    settings = dict(settings or {})
    kind = _find(name)
    length = settings.pop("n", None)
    arguments = _arguments(kind, name, settings, seed)
    _refuse_absent(kind, name)
    try:
        dataset = kind(**arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: {error}") from None
    if (dataset.n_outputs or 1) > 1 or "ulti-output" in str(dataset.task):
        raise InputError(f"{name}: it has {dataset.n_outputs} targets; streams have one")
    size = dataset.n_samples if length is None else _rows(name, length, dataset.n_samples)
    # a bundled set is small; it is read to its end, since river leaves the file of a set half read open
    pairs = list(dataset) if dataset.n_samples and not _is_remote(kind) else None
    reader = RiverRows(name, lambda: kind(**arguments) if pairs is None else pairs, size)
    regression = "egression" in str(dataset.task)
    counted = tuple(map(str, range(dataset.n_classes or 0)))
    rules = Rules(target="regression" if regression else "classification", prefix=dataset.n_samples or 1000)
    plan = settle(reader, "y", rules)
    if not regression and dataset.n_samples is None and set(plan.classes) <= set(counted):
        plan = settle(reader, "y", replace(rules, classes=counted))
    return BlockStream(plan.spec, TableBlocks(reader, plan))


def _rows(name: str, value: Any, available: int | None) -> int:
    try:
        n = int(value)
    except (TypeError, ValueError):
        n = 0
    if n < 1:
        raise InputError(f"{name}: n must be a whole number above 0, not {value!r}")
    return n if available is None else min(n, available)


def _find(name: str) -> Any:
    """The class; its module may be written with or without ``datasets.``"""
    from river import datasets

    path = name.removeprefix("river:").removeprefix("datasets.")
    module, _, cls = path.rpartition(".")
    home: Any = None
    if module in ("", "synth"):
        home = importlib.import_module(f"river.datasets.{module}" if module else "river.datasets")
    kind = getattr(home, cls, None)
    if not (inspect.isclass(kind) and issubclass(kind, datasets.base.Dataset)):
        known = [n for n, c in vars(home or datasets).items() if inspect.isclass(c) and n[0].isupper()]
        raise InputError(f"{name}: river has no such data set; it has {', '.join(sorted(known))}")
    return kind


def _arguments(kind: Any, name: str, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """The class's arguments: settings (text converted to the type of each default), and the seed where it takes one."""
    import msgspec

    parameters = {k: p for k, p in inspect.signature(kind).parameters.items() if p.kind is not p.VAR_KEYWORD}
    found: dict[str, Any] = {k: seed for k in ("seed", "seed_model", "seed_sample") if k in parameters}
    for key, value in settings.items():
        if key not in parameters:
            raise InputError(f"{name}: unknown parameter {key!r}; it has {', '.join(['n', *parameters])}")
        default = parameters[key].default
        wanted = int if key.startswith("seed") else type(default) if isinstance(default, bool | int | float) else Any
        try:
            found[key] = msgspec.convert(value, wanted, strict=False)
        except msgspec.ValidationError as error:
            raise InputError(f"{name}: {key}={value!r}: {error}") from None
    return found


def _refuse_absent(kind: Any, name: str) -> None:
    """River downloads some sets on first use; here that is the user's decision."""
    if not _is_remote(kind):
        return
    home = Path(os.environ.get("RIVER_DATA", "~/river_data")).expanduser()
    if not (home / kind.__name__).is_dir() or not kind().is_downloaded:
        how = f'python -c "from river import datasets; datasets.{kind.__name__}().download()"'
        raise InputError(f"{name}: not on this machine; river fetches it with: {how}")


def _is_remote(kind: Any) -> bool:
    from river import datasets

    return issubclass(kind, datasets.base.RemoteDataset)
