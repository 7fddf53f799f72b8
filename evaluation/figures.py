"""Numbers as people read them, for reports and for the terminal. An absent value is a dash, never a zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

DASH = "–"


@dataclass(frozen=True, slots=True)
class Measure:
    """The score a run is judged by. unit: "%" for a fraction shown per cent, "" for the target's own unit, "0.0001" for
    a score whose fourth decimal counts."""

    key: str
    name: str
    unit: str
    higher_is_better: bool

    def show(self, value: Any, *, like: float | None = None) -> str:
        if self.unit == "0.0001":
            return score(value)
        return percent(value) if self.unit == "%" else number(value, like=like)

    def gain(self, value: float, other: float) -> float:
        """By how much ``value`` is better than ``other``; negative where it is worse."""
        return value - other if self.higher_is_better else other - value

    def show_gain(self, value: float, other: float) -> str:
        """The size of the gain in words, without its sign."""
        size = abs(value - other)
        return f"{100 * size:.1f} points" if self.unit == "%" else self.show(size)


ACCURACY = Measure("accuracy", "accuracy", "%", True)
MAE = Measure("mae", "mean absolute error", "", False)
PDMS = Measure("pdms", "PDMS", "%", True)
SHIFT_ERROR = Measure("shift_error", "mean error", "%", False)
HARMONIC_MEAN = Measure("harmonic_mean", "harmonic mean", "%", True)
AUC = Measure("auc", "AUC", "0.0001", True)
OVER_SESSIONS = Measure("accuracy", "accuracy over sessions", "%", True)


def measure_of(summary: Mapping[str, Any]) -> Measure:
    """Mean absolute error where the summary has one and no accuracy, else accuracy."""
    return MAE if summary.get("accuracy") is None and summary.get("mae") is not None else ACCURACY


def baseline_name(key: str, measure: Measure) -> str:
    """What a summary's baseline is called: the commonest answer to a regression is the running mean."""
    return "no-change" if key == "no_change" else "running mean" if measure is MAE else "majority"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether value is a finite number (a bool is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def look_up(summary: Mapping[str, Any], key: Sequence[str | int]) -> float | None:
    """The number at a path of a summary, keys of its tables and places in its lists; None where there is none.

    >>> look_up({"few_shot": {"sessions": [{"rows": 5}]}}, ("few_shot", "sessions", 0, "rows"))
    5.0
    """
    value: Any = summary
    for part in key:
        if isinstance(value, Mapping):
            value = value.get(part)
        else:
            value = value[part] if isinstance(value, list) and isinstance(part, int) and part < len(value) else None
    return float(value) if is_number(value) else None


def percent(value: Any, digits: int = 1, *, like: float | None = None) -> str:  # noqa: ARG001 - one unit for all
    """A fraction in per cent.

    >>> percent(0.98765), percent(None)
    ('98.8 %', '–')
    """
    return f"{100 * value:.{digits}f} %" if is_number(value) else DASH


def hundredths(value: Any, *, like: float | None = None) -> str:
    """A fraction in per cent without its unit, for tables that say it once.

    >>> hundredths(0.98765)
    '98.8'
    """
    return percent(value, like=like).removesuffix(" %")


def points(value: Any, *, like: float | None = None) -> str:  # noqa: ARG001 - one unit for all
    """A difference of two shares in points, hundredths of the whole.

    >>> points(0.4242), points(-0.05)
    ('42.4 points', '−5.0 points')
    """
    return f"{100 * value:.1f} points".replace("-", "−") if is_number(value) else DASH


def number(value: Any, *, like: float | None = None) -> str:
    """Some three or four figures, thousands apart. like: write it as that number would be.

    >>> number(0.84256), number(12.3456), number(45312), number(1234.5), number(1.5, like=1234.5)
    ('0.843', '12.35', '45,312', '1,234', '2')
    """
    if not is_number(value):
        return DASH
    size = value if like is None else like
    if isinstance(size, int) or abs(size) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(size) >= 10 else f"{value:.3f}"


def score(value: Any, *, like: float | None = None) -> str:  # noqa: ARG001 - one form for all
    """A score whose fourth decimal counts.

    >>> score(0.70234), score(None)
    ('0.7023', '–')
    """
    return f"{value:.4f}" if is_number(value) else DASH


def tally(value: Any, *, like: float | None = None) -> str:
    """A count, or a mean of counts with one decimal.

    >>> tally(3.0), tally(3.25), tally(0.0, like=3.25)
    ('3', '3.2', '0.0')
    """
    if not is_number(value):
        return DASH
    return f"{value:,.0f}" if float(value if like is None else like).is_integer() else f"{value:,.1f}"


def ratio(value: Any, *, like: float | None = None) -> str:  # noqa: ARG001 - one form for all
    """How many times as much, with one decimal.

    >>> ratio(1.76)
    '1.8'
    """
    return f"{value:.1f}" if is_number(value) else DASH


def rate(value: Any, *, like: float | None = None) -> str:
    """Rows a second, to three figures: nobody measures better than that.

    >>> rate(61234.5), rate(1234.5, like=61234.5)
    ('61,200', '1,200')
    """
    if not is_number(value) or value < 0:
        return DASH
    step = 10 ** max(0, math.floor(math.log10((value if like is None else like) or 1)) - 2)
    return f"{round(value / step) * step:,.0f}"


def duration(seconds: Any) -> str:
    """Seconds in the unit that suits them.

    >>> duration(0.0213), duration(4.2), duration(312.0)
    ('21 ms', '4.2 s', '5 min 12 s')
    """
    if not is_number(seconds):
        return DASH
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{int(seconds) // 60} min {int(seconds) % 60} s"


def milliseconds(value: Any, *, like: float | None = None) -> str:
    """Milliseconds, or microseconds below a tenth of one."""
    if not is_number(value):
        return DASH
    small = (value if like is None else like) < 0.1
    return f"{1000 * value:.1f} µs" if small else f"{value:.2f} ms"


def megabytes(value: Any, *, like: float | None = None) -> str:
    """MB, kB below a tenth of one, bytes below a tenth of those.

    >>> megabytes(214.3), megabytes(1.87), megabytes(0.0225), megabytes(0.000024)
    ('214 MB', '1.9 MB', '22.5 kB', '24 B')
    """
    if not is_number(value):
        return DASH
    size = value if like is None else like
    if size < 0.1:
        return f"{1e6 * value:.0f} B" if size < 1e-4 else f"{1000 * value:.1f} kB"
    return f"{value:,.1f} MB" if size < 100 else f"{value:,.0f} MB"


def spread(values: list[float], show: Any) -> str:
    """Mean ± sample standard deviation (n - 1); the mean alone where there is one value.

    >>> spread([0.80, 0.82], percent)
    '81.0 ± 1.4 %'
    """
    if not values:
        return DASH
    mean, sd = mean_sd(values)
    if len(values) == 1:
        return str(show(mean)).replace("-", "−")
    value, _, unit = str(show(mean)).replace("-", "−").partition(" ")
    return f"{value} ± {str(show(sd, like=mean)).partition(' ')[0]} {unit}".strip()


def mean_sd(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1; 0 for one value)."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def count(n: float, one: str, many: str = "") -> str:
    """A number with its noun.

    >>> count(1, "row"), count(2500, "row")
    ('1 row', '2,500 rows')
    """
    return f"{n:,.0f} {one if n == 1 else many or one + 's'}"
