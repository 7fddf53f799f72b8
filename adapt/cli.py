"""The ``driftway`` command. Parses, calls, prints; everything it does is a function elsewhere.

Exit codes: 0 done, 2 bad usage or input (one line on stderr), 130 interrupted (a checkpoint is written where there is
``--out``). Heavy modules are imported by the command that needs them, so ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .. import __version__
from ..streams.spec import InputError
from .benchmarks import BENCHMARKS

if TYPE_CHECKING:
    from .config import RunConfig
    from .console import LiveBar
    from .runs import Run

DONE, BAD_INPUT, INTERRUPTED = 0, 2, 130
DEMO_STREAM = "digits"


class _Parser(argparse.ArgumentParser):
    """Answers bad usage with one line, like every other mistake."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    try:
        options = build_parser().parse_args(argv)
        code = options.command(options)
        sys.stdout.flush()
    except InputError as fault:
        print(f"driftway: error: {' '.join(str(fault).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("driftway: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as fault:
        where = f"{fault.filename}: " if fault.filename else ""
        print(f"driftway: error: {where}{fault.strerror or fault}", file=sys.stderr)
        return BAD_INPUT
    return int(code)


# --- the grammar ------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """Every command with its flags."""
    parser = _Parser(
        prog="driftway",
        description="Keeps a deployed model right while the world drifts.",
        epilog="driftway run, with nothing else, is a demonstration that takes less than a minute.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"driftway {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, does: Callable[[argparse.Namespace], int], words: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".", allow_abbrev=False)
        sub.set_defaults(command=does)
        return sub

    run = command("run", _run, "run one learner over one stream")
    run.add_argument(
        "stream", nargs="*", metavar="STREAM | CONFIG.toml", help="what to run on, or a whole configuration"
    )
    run.add_argument("--learner", metavar="NAME", help="see driftway learners")
    _add_run_options(run)
    compare = command("compare", _compare, "run several learners over one stream: one table, one report")
    compare.add_argument("stream", nargs=1, metavar="STREAM")
    compare.add_argument("--learners", required=True, metavar="A,B,C", help="see driftway learners")
    compare.add_argument("--seeds", metavar="0,1,2", help="every learner once per seed; the table gives mean ± sd")
    _add_run_options(compare)
    for kind in ("streams", "learners", "metrics"):
        listing = command(kind, _list, f"list the {kind} there are, or explain one")
        listing.add_argument("name", nargs="?", metavar="NAME")
        listing.set_defaults(kind=kind)
    data = command("data", _data, "say where each data set is looked for, its licence and how to get it")
    data.add_argument("name", nargs="?", metavar="NAME")
    data.add_argument("--fetch", action="store_true", help="download what is missing from its publisher")
    forget = command("forget", _forget, "unlearn rows exactly on a finished or paused run, and print the receipt")
    forget.add_argument("folder", type=Path, metavar="DIR")
    what = forget.add_mutually_exclusive_group(required=True)
    what.add_argument("--ids", metavar="3,17", help="numbers of the rows")
    what.add_argument("--ids-file", type=Path, metavar="F", help="a file with numbers of rows")
    what.add_argument("--class", dest="label", metavar="NAME", help="all rows of a class")
    what.add_argument("--group", metavar="N", help="all rows between two boundaries, counted from 0")
    forget.add_argument("--reason", default="", metavar="WORDS", help="noted in the ledger")
    forget.add_argument("--json", action="store_true", help="the ledger's line as JSON, and nothing else on stdout")
    export = command("export", _export, "write a run's learner as an edge bundle: ONNX graphs that go on adapting")
    export.add_argument("folder", type=Path, metavar="DIR")
    export.add_argument("--to", type=Path, required=True, metavar="BUNDLE", help="a new folder")
    export.add_argument(
        "--weights", default="float32", metavar="float32|float16|int8", help="how those that stay are kept"
    )
    report = command("report", _report, "rebuild report.html from the records of a run or comparison")
    report.add_argument("folder", type=Path, metavar="DIR")
    bench = command("bench", _bench, "measure against named peers")
    bench.add_argument(
        "name", nargs="?", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}; all quick ones if left out"
    )
    bench.add_argument("--device", metavar="cpu|cuda", help="default cpu; only for those that can")
    bench.add_argument("--json", action="store_true", help="the rows as JSON, and nothing else on stdout")
    bench.add_argument(
        "--save", type=Path, metavar="FILE", help="the rows with date, device, clocks, versions, as JSON"
    )
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    """Flags of run and compare. What is not given stays out of the namespace, so that a file's value holds."""
    unset = argparse.SUPPRESS
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of learner or stream (of one learner of a comparison: NAME.KEY=VALUE)",
    )
    parser.add_argument(
        "--source",
        metavar="MODEL",
        help="the model that adaptation starts from: a safetensors file, torchvision:NAME or package.module:function",
    )
    parser.add_argument("--label", default=unset, metavar="COLUMN", help="the target's column in a file")
    parser.add_argument("--batch", default=unset, metavar="N", help="rows predicted, then learnt together (default 1)")
    parser.add_argument("--delay", default=unset, metavar="N", help="rows that pass before a label comes (default 0)")
    parser.add_argument("--limit", default=unset, metavar="N", help="end after this many rows")
    parser.add_argument("--seed", default=unset, metavar="N", help="default 0")
    parser.add_argument(
        "--evaluate-every",
        default=unset,
        metavar="N",
        help="updates between evaluations of all experiences seen (default auto: at their ends; 0: none)",
    )
    parser.add_argument(
        "--evaluate-worker", action="store_const", const=True, default=unset, help="evaluate in a process of its own"
    )
    parser.add_argument(
        "--time-slots", default=unset, metavar="N", help="slots of time that clicks are scored by (default 10)"
    )
    parser.add_argument(
        "--forget-every", default=unset, metavar="N", help="simulate a request to forget after every N rows"
    )
    parser.add_argument("--forget-rows", default=unset, metavar="N", help="rows a simulated request names (default 10)")
    parser.add_argument(
        "--forget-gap",
        action="store_const",
        const=True,
        default=unset,
        help="after every request compare the learner with one trained anew on what remains (keeps all rows)",
    )
    parser.add_argument("--device", default=unset, metavar="cpu|cuda", help="default cpu")
    parser.add_argument(
        "--no-guard", dest="guard", action="store_const", const=False, default=unset, help="never roll a learner back"
    )
    parser.add_argument(
        "--no-stand-in",
        dest="stand_in",
        action="store_const",
        const=False,
        default=unset,
        help="take the learner's answers even while adaptation looks worse than its source model",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write records, summary, report and checkpoints here")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--json", action="store_true", help="the summary as JSON, and nothing else on stdout")


FLAGS = (
    *("learner", "label", "batch", "delay", "limit", "seed", "device"),
    *("evaluate_every", "evaluate_worker", "time_slots", "guard", "stand_in"),
    *("forget_every", "forget_rows", "forget_gap"),
)


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, as keys of a configuration."""
    return {name: getattr(options, name) for name in FLAGS if getattr(options, name, None) is not None}


def _settings(options: argparse.Namespace) -> list[str]:
    """What ``--set`` gave, and ``--source``, which is a parameter of learners that start from a source model."""
    return [*options.set, *([] if options.source is None else [f"learner.source={options.source}"])]


# --- run and compare --------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    from .config import resolve

    names = list(options.stream)
    files = [name for name in names if name.endswith(".toml")]
    streams = [name for name in names if not name.endswith(".toml")]
    if len(files) > 1 or len(streams) > 1:
        raise InputError(f"run takes one stream and one configuration file, not {' and '.join(names)}")
    given = _given(options)
    settings = _settings(options)
    if not names and not given and not settings and options.out is None and not options.resume:
        return _demonstrate(options)
    config_file = Path(files[0]) if files else None
    if options.resume:
        if options.out is None:
            raise InputError("--resume needs --out DIR, the folder of the run")
        if not names and (options.out / "config.toml").exists():
            config_file = options.out / "config.toml"
    config = resolve(given | ({"stream": streams[0]} if streams else {}), settings=settings, config=config_file)
    return _one_run(config, options)


def _one_run(config: RunConfig, options: argparse.Namespace) -> int:
    from .console import LiveBar
    from .runs import finished, signals_stop

    if options.resume:
        summary = finished(options.out, config)
        if summary is not None:
            print(f"{options.out}: this run is finished, there is nothing to resume", file=sys.stderr)
            _show(summary, options)
            return DONE
    run = _start(config, options.out, resume=options.resume)
    with signals_stop(run):
        with LiveBar(config.learner) as bar:
            _watch(run, bar, config.learner)
        summary = run.summary()
        if options.out is not None:
            _write_report(options.out)
        _show(summary, options, bar.curve())
    return DONE if summary["status"] == "done" else INTERRUPTED


def _start(config: RunConfig, out: Path | None, *, resume: bool) -> Run:
    """A run ready to go. Says what is going on where that takes more than a moment; nothing where nobody looks."""
    from .runs import Run

    words = "compiling what this learner needs: up to a minute the first time, then it is kept"
    teller = threading.Timer(2.0, lambda: print(f"driftway: {words}", file=sys.stderr))
    teller.daemon = True
    if sys.stderr.isatty():
        teller.start()
    try:
        return Run(config, out, resume=resume, command=shlex.join(["driftway", *sys.argv[1:]]))
    finally:
        teller.cancel()


def _watch(run: Run, bar: LiveBar, name: str) -> None:
    """Step through a run under a live bar on stderr."""
    told = _tell(run.notes)
    bar.expect(run.stream.spec)
    for record in run.steps():
        bar.update(record, name)
    _tell(run.notes[told:])


def _tell(notes: Sequence[str]) -> int:
    for note in notes:
        print(f"driftway: {note}", file=sys.stderr)
    return len(notes)


def _show(summary: dict[str, Any], options: argparse.Namespace, curve: Sequence[Any] = ()) -> None:
    from .console import print_summary
    from .folder import to_json

    if options.json:
        sys.stdout.write(to_json(summary))
        return
    print_summary(summary, options.out, curve=curve)
    if options.out is None:
        print("nothing was written; --out DIR keeps records, report and checkpoints")


def _compare(options: argparse.Namespace) -> int:
    from .compare import plan

    given = _given(options) | {"stream": options.stream[0]}
    seeds = (options.seeds or str(given.pop("seed", 0))).split(",")
    if not all(seed.strip().isdigit() for seed in seeds):
        raise InputError(f"--seeds {options.seeds}: expected numbers with commas between them, such as 0,1,2")
    learners = [name.strip() for name in options.learners.split(",")]
    return _many_runs(plan(given, learners, [int(seed) for seed in seeds], _settings(options)), options)


def _many_runs(configs: list[RunConfig], options: argparse.Namespace) -> int:
    from .compare import run_all
    from .console import LiveBar, print_comparison
    from .folder import to_json

    several = len({config.seed for config in configs}) > 1

    def watch(run: Run) -> None:
        _watch(run, bar, run.config.learner + (f" #{run.config.seed}" if several else ""))

    with LiveBar() as bar:
        outcome = run_all(configs, options.out, start=_start, watch=watch, resume=options.resume)
    if options.out is not None:
        _write_report(options.out)
    if options.json:
        sys.stdout.write(to_json(outcome.summaries))
    else:
        print_comparison(outcome.summaries, options.out)
    return INTERRUPTED if outcome.interrupted else DONE


def _demonstrate(options: argparse.Namespace) -> int:
    """The learner beside the same learner frozen after its first rows, on data that ships with a dependency."""
    from .compare import fresh_folder, plan
    from .config import DEFAULT_LEARNER

    options.out = fresh_folder(Path("driftway-demo"))
    print(f"{DEFAULT_LEARNER} beside its frozen self on {DEMO_STREAM}, a stream that drifts", file=sys.stderr)
    return _many_runs(plan({"stream": DEMO_STREAM}, [DEFAULT_LEARNER, f"frozen:{DEFAULT_LEARNER}"], [0]), options)


# --- the other commands -----------------------------------------------------------------------------------------


def _write_report(folder: Path) -> Path:
    from ..evaluation.report import read_run, render_comparison, render_run
    from .compare import SUMMARIES, run_folders
    from .folder import REPORT, write_whole

    if (folder / SUMMARIES).exists():
        page = render_comparison([read_run(one) for one in run_folders(folder)])
    else:
        page = render_run(read_run(folder))
    write_whole(folder / REPORT, page)
    return folder / REPORT


def _report(options: argparse.Namespace) -> int:
    print(_write_report(options.folder))
    return DONE


def _list(options: argparse.Namespace) -> int:
    from . import listing

    listing.show(options.kind, options.name)
    return DONE


def _data(options: argparse.Namespace) -> int:
    from . import listing

    return DONE if listing.show_data(options.name, fetch=options.fetch) else BAD_INPUT


def _forget(options: argparse.Namespace) -> int:
    from ..streams import Forget
    from .folder import to_json
    from .unlearning import forget_in_folder, read_ids, receipt_lines

    if options.label is not None:
        request = Forget(read_ids(""), 0.0, options.reason, "class")
    elif options.group is not None:
        request = Forget(read_ids(options.group), 0.0, options.reason, "group")
    else:
        text = options.ids if options.ids_file is None else options.ids_file.read_text("utf-8", "replace")
        request = Forget(read_ids(text), 0.0, options.reason)
    receipt, entry = forget_in_folder(options.folder, request, name=options.label or "")
    if options.json:
        sys.stdout.write(to_json(entry))
    else:
        print(*receipt_lines(receipt, entry, options.folder), sep="\n")
    return DONE


def _export(options: argparse.Namespace) -> int:
    from .edge.export import export_run
    from .edge.footprint import table

    made = export_run(options.folder, options.to, options.weights)
    print(table(made), made, sep="\n")
    return DONE


def _bench(options: argparse.Namespace) -> int:
    from .benchmarks import measure
    from .folder import to_json

    rows = measure(options.name, options.device)
    if options.save is not None:
        from .benchmarks.floors import facts

        command = " ".join(part for part in ("driftway bench", options.name) if part)
        options.save.write_text(to_json(facts(options.device or "cpu") | {"command": command, "rows": rows}), "utf-8")
    if options.json:
        sys.stdout.write(to_json(rows))
    else:
        from . import listing

        listing.show_bench(rows)
    return DONE
