"""How functions are compiled: strict arithmetic, and a cache that follows every change of the sources."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from driftway.models import compiled as home
from driftway.models.compiled import compiled, inlined, inner


@inner
def twice(x: float) -> float:
    return 2.0 * x


@inlined
def thrice(x: float) -> float:
    return 3.0 * x


@compiled
def total(values: Any) -> float:
    out = 0.0
    for value in values:
        out += value
    return out


@compiled
def six(x: float) -> float:
    return twice(thrice(x))


@compiled
def ratio(a: float, b: float) -> float:
    return a / b


@compiled(fastmath=True)
def loose_total(values: Any) -> float:
    out = 0.0
    for value in values:
        out += value
    return out


def test_fast_sums_are_sums() -> None:
    values = np.random.default_rng(0).normal(size=1_001)
    assert loose_total(values) == pytest.approx(total(values), rel=1e-12)


def test_sums_keep_their_order() -> None:
    values = np.random.default_rng(0).normal(size=1_001) * 10.0 ** np.arange(1_001)[::-1] ** 0.1
    out = 0.0
    for value in values.tolist():
        out += value
    assert total(values) == out


def test_division_by_zero_is_numpys() -> None:
    assert ratio(1.0, 0.0) == np.inf
    assert np.isnan(ratio(0.0, 0.0))


def test_the_three_kinds_call_each_other() -> None:
    assert six(1.5) == 9.0


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with two source files, and Numba's settings restored afterwards."""
    for name in ("models/a.py", "adapt/learners/b.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(home, "PACKAGE", tmp_path)
    settings: Any = numba.config
    monkeypatch.setattr(settings, "CACHE_DIR", settings.CACHE_DIR)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    return tmp_path


def test_any_change_of_any_source_starts_a_new_cache(sources: Path) -> None:
    settings: Any = numba.config
    home._use_own_cache()
    first = settings.CACHE_DIR
    assert Path(first).parent == sources / "models" / "__pycache__"
    home._use_own_cache()
    assert first == settings.CACHE_DIR
    (sources / "adapt" / "learners" / "b.py").write_text("x = 2  # longer\n")
    home._use_own_cache()
    assert first != settings.CACHE_DIR


def test_folders_of_former_versions_go_after_a_day(sources: Path) -> None:
    old, young, other = (sources / "models" / "__pycache__" / n for n in ("compiled-old", "compiled-new", "keep"))
    for folder in (old, young, other):
        folder.mkdir(parents=True)
    for folder in (old, other):
        os.utime(folder, (time.time() - 2 * home.DAY,) * 2)
    home._use_own_cache()
    assert [folder.exists() for folder in (old, young, other)] == [False, True, True]


def test_a_cache_folder_of_ones_own_is_respected(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: Any = numba.config
    monkeypatch.setenv("NUMBA_CACHE_DIR", os.fspath(sources / "mine"))
    monkeypatch.setattr(settings, "CACHE_DIR", "untouched")
    home._use_own_cache()
    assert settings.CACHE_DIR == "untouched"
