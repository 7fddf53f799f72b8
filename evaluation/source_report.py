"""Sections on the source domain: what adapting to other rows cost on the clean ones."""

from __future__ import annotations

from . import figures as show
from .run_data import RunData
from .section import Cell, Compared, Section, Table, Words
from .source_domain import BATCH

FIGURES = ("before", "after", "forgotten")
MEANING = (
    "Accuracy on clean rows of the source that the model was not trained on, before the first event and at the end of "
    f"the run; in both cases they are asked in batches of {BATCH}, and asking changes nothing."
)


def source_section(run: RunData) -> Section | None:
    """What one run forgot of its source; None where it has none."""
    found = run.summary.get("source_domain")
    if not isinstance(found, dict):
        return None
    lost = found["forgotten"]
    words = (
        f"{show.points(abs(lost))} were {'forgotten' if lost > 0 else 'gained'}" if lost else "nothing was forgotten"
    )
    rows = [
        [show.percent(found["before"]), show.percent(found["after"]), show.points(lost), show.number(found["rows"])]
    ]
    return Section(
        "Source domain",
        [Words(f"{MEANING} Here {words}."), Table(["before", "after", "forgotten", "rows asked"], rows)],
    )


def source_compared(runs: Compared) -> Section | None:
    """What every learner forgot of its source, mean ± sd over seeds."""
    learners = [n for n in runs.colours if runs.values(n, "source_domain", "before")]
    rows: list[list[str | Cell]] = []
    for n in learners:
        cells = [show.spread(runs.values(n, "source_domain", key), show.hundredths) for key in FIGURES]
        rows.append([runs.name(n), *cells])
    if not rows:
        return None
    words = f"{MEANING} In per cent; forgotten is before minus after, so below 0 is gained."
    return Section("Source domain", [Words(words), Table(["learner", *FIGURES], rows)])
