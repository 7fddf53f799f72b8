"""What ``driftway streams``, ``learners``, ``metrics``, ``data`` and ``bench`` print: aligned text for eye and grep."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, get_type_hints

from ..streams import Dataset, InputError

PATHS = "csv, tsv, jsonl (.gz too), parquet, npz; a folder whose .jsonl files are tasks: prompts and answers"


def columns(rows: Iterable[Sequence[str]], *, header: Sequence[str] = ()) -> str:
    """Rows as aligned columns; the last one is wrapped under itself to the width of the terminal."""
    table = [list(header)] * bool(header) + [[str(cell) for cell in row] for row in rows]
    if not table:
        return ""
    widths = [max(len(row[j]) for row in table) for j in range(len(table[0]) - 1)]
    left = sum(widths) + 2 * len(widths)
    width = max(shutil.get_terminal_size((100, 24)).columns, left + 30)
    lines = []
    for row in table:
        start = "".join(cell.ljust(size + 2) for cell, size in zip(row, widths))
        wrapped = textwrap.wrap(row[-1], width - left - 1, break_long_words=False, break_on_hyphens=False) or [""]
        lines.append((start + wrapped[0]).rstrip())
        lines += [" " * left + more for more in wrapped[1:]]
    return "\n".join(lines)


def parameters(params: type, meanings: Mapping[str, str]) -> str:
    """The fields of a parameter dataclass: name, type, default, meaning."""
    types, rows = get_type_hints(params), []
    for field in fields(params):
        kind = types[field.name]
        shown = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
        shown = shown.replace("typing.", "")
        rows.append((f"  {field.name}", shown, _default(field), meanings.get(field.name, "")))
    return columns(rows, header=("  parameter", "type", "default", "meaning")) if rows else "  no parameters"


def described(params: type) -> dict[str, str]:
    """What each field means: its own metadata, else the string that stands below it in the source of its class."""
    found: dict[str, str] = {}
    for part in getattr(params, "kinds", ()):
        found |= described(part)
    for kind in reversed(params.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
        except (OSError, TypeError, SyntaxError):  # made at run time: no source
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for field, words in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(words, ast.Expr):
                found[field.target.id] = " ".join(str(ast.literal_eval(words.value)).split())
    return found | {f.name: str(f.metadata["doc"]) for f in fields(params) if "doc" in f.metadata}


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        return str(field.default) if field.default != "" else "''"
    return str(field.default_factory()) if field.default_factory is not MISSING else "required"


def show(kind: str, name: str | None) -> None:
    """Print the table of one kind, or everything about one of its names."""
    {"streams": _streams, "learners": _learners, "metrics": _metrics}[kind](name)


def _streams(name: str | None) -> None:
    from ..streams import STREAMS, describe

    if name is None:
        rows = [(n, e.summary) for n, e in STREAMS.items()]
        print(columns([*rows, ("river:NAME", "any data set of river"), ("PATH", PATHS)]))
        return
    about = describe(name)
    print(f"{name}: {about['summary']}\n")
    if about["text"]:
        print(textwrap.indent(about["text"], "  ") + "\n")
    given = [(f"  {p['name']}", p["type"], str(p["default"]), p["doc"]) for p in about["parameters"]]
    print(columns(given, header=("  parameter", "type", "default", "meaning")) if given else "  no parameters")
    if about["citation"]:
        print(f"\n  source    {about['citation']}")
    if about["dataset"]:
        print(f"  data      driftway data {about['dataset']}")


def _learners(name: str | None) -> None:
    from .learners import LEARNERS, is_composed, learner_params

    if name is None:
        print(columns((f"{n}:{e.takes}" if e.takes else n, e.summary) for n, e in LEARNERS.items() if not e.part))
        print("\nnetworks; these combine with +, such as er+adab2n+sparcl:")
        print(columns((n, e.summary) for n, e in LEARNERS.items() if e.part))
    elif is_composed(name):
        _composed(name)
    else:
        _learner(name, learner_params(name))


def _learner(name: str, params: type) -> None:
    """One learner of the table."""
    from .learners import find_learner, learner_class, learner_params

    entry, rest = find_learner(name)
    kind, meanings = learner_class(name), described(params)
    if entry.takes == "learner":
        meanings = described(learner_params(rest or kind.Params.learner)) | meanings  # type: ignore[attr-defined]
    print(f"{name}: {entry.summary}\n")
    _explain(kind, params, meanings)
    print(f"\n  targets   {', '.join(sorted(kind.targets))}\n  devices   {', '.join(sorted(kind.devices))}")
    print(f"  needs     {', '.join(sorted(kind.needs)) or 'nothing but labels'}")
    if entry.citation:
        print(f"  source    {entry.citation}")


def _composed(name: str) -> None:
    """Parts of the gradient learner: each for itself, then the step that all share."""
    from .learners import LEARNERS, learner_class, learner_params

    learner_params(name)
    for word in name.split("+"):
        entry = LEARNERS[word]
        kind = entry.load_part()
        print(f"{word}: {entry.summary}\n")
        _explain(kind, kind, described(kind))
        needs = sorted(kind().needs)
        print(f"\n  needs     {', '.join(needs) or 'nothing but labels'}")
        for other, reason in kind().refuses.items():
            print(f"  not with  {other}: {reason}")
        print(f"  source    {entry.citation}\n" if entry.citation else "")
    step = learner_class(name)
    print("the step that all parts share\n")
    print(parameters(step.Params, described(step.Params)))


def _explain(kind: type, params: type, meanings: Mapping[str, str]) -> None:
    """What its class says of itself, without the examples that follow, and its parameters."""
    text = re.split(r"\n\n(?=>{3} )", inspect.getdoc(kind) or "")[0]
    print(textwrap.indent(text, "  ") + "\n")
    print(parameters(params, meanings))


def _metrics(name: str | None) -> None:
    from ..evaluation.metrics import METRICS

    if name is None:
        print(columns((m.name, m.direction, m.meaning) for m in METRICS.values()))
        return
    metric = METRICS[known(name, METRICS, "metric")]
    print(f"{metric.name}: {metric.meaning}\n\n  formula   {metric.formula}\n  better    {metric.direction}")
    print(f"  source    {metric.citation}")


def known(name: str, table: Iterable[str], what: str) -> str:
    """The name, if it is in the table; ``InputError`` with near matches if not."""
    names = list(table)
    if name in names:
        return name
    near = get_close_matches(name, names, n=3)
    raise InputError(
        f"unknown {what} {name!r}: "
        + (f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}")
    )


def show_data(name: str | None, *, fetch: bool) -> bool:
    """Print where each data set is, or get the missing ones; False where one could not be had."""
    from ..streams import DATASETS, folders, locate

    chosen = list(DATASETS.values()) if name is None else [DATASETS[known(name, DATASETS, "data set")]]
    if fetch:
        missing = [d for d in chosen if locate(d, complete=name is not None) is None]
        failed = [dataset for dataset in missing if not _fetch(dataset)]
        return not failed
    if name is None:
        rows = ((d.name, *_found(d), d.licence) for d in chosen)
        print(columns(rows, header=("data set", "file", "here", "licence")))
        print(f"\nlooked for in {' then '.join(map(str, folders()))}")
        print("driftway data NAME says more; driftway data NAME --fetch gets it from its publisher")
        return True
    dataset = chosen[0]
    where = locate(dataset)
    facts = [
        ("file", dataset.file),
        ("here", str(where) if where else "missing"),
        *((file, what) for file, what in dataset.holds),
        ("looked for", " then ".join(map(str, folders()))),
        ("licence", dataset.licence),
        ("publisher", dataset.publisher),
        *(("source", f"{s.url} (sha256 {s.sha256})") for s in dataset.sources),
        ("how", f"driftway data {dataset.name} --fetch"),
        ("by hand", dataset.how),
    ]
    print(f"{dataset.name}\n\n{columns((('  ' + key, value) for key, value in facts))}")
    return True


def _found(dataset: Dataset) -> tuple[str, str]:
    """The file that would be read, and whether it is here."""
    from ..streams import locate

    where = locate(dataset)
    if where is None:
        return dataset.file, "missing"
    return where.name, "a part" if where.name == dataset.part else "found"


def _fetch(dataset: Dataset) -> bool:
    """Download one data set with a bar on stderr; on failure say why and go on with the next."""
    from ..streams import fetch

    def bar(file: str, done: int, total: int | None) -> None:
        if sys.stderr.isatty():
            share = f"{100 * done / total:3.0f} %" if total else ""
            sys.stderr.write(f"\r{dataset.name}: {file} {done / 1e6:.1f} MB {share}\x1b[K")

    if not dataset.sources:
        with suppress(ImportError, RuntimeError):  # the fetch itself says what is wrong
            from ..models.vision import import_torchvision

            import_torchvision()
    try:
        print(fetch(dataset, progress=bar))
    except InputError as fault:
        print(f"driftway: error: {fault}", file=sys.stderr)
        return False
    finally:
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
    return True


def show_bench(rows: list[dict[str, Any]]) -> None:
    """The rows of a benchmark as a table."""

    def shown(value: float) -> str:
        return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"

    def line(r: dict[str, Any]) -> tuple[str, ...]:
        floor = "" if r["floor"] is None else f"{r['floor']:.2f}x"
        met = {None: "", True: "met", False: "missed"}[r.get("met")]
        numbers = (shown(r["ours"]), shown(r["peer"]), r["unit"], f"{r['ratio']:.2f}x", floor)
        return (r["bench"], r["case"], *numbers, r["peer_name"], r.get("target") or "", met)

    header = ("bench", "case", "ours", "peer", "unit", "ratio", "of floor", "peer is", "target", "")
    print(columns([line(r) for r in rows], header=header))
