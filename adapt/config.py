"""A run's configuration: one frozen dataclass, one TOML file, one set of flags, one source of truth.

``RunConfig`` is always complete: every parameter of the stream and of the learner is there with the value that the run
uses, so ``config.toml`` in a run folder repeats the run whatever the defaults become. TOML has no null; the
string ``"none"`` stands for it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..streams import (
    InputError,
    Stream,
    delay_labels,
    describe,
    keep_asking,
    open_stream,
    rebatch,
    stream_params,
    take,
)
from .learners import learner_params

DEFAULT_LEARNER = "driftmoe"
TABLES = {"stream_params": "stream", "learner_params": "learner"}


def option(default: Any, meaning: str) -> Any:
    """A dataclass field with a default and a sentence for whoever asks what it means."""
    return field(default=default, metadata={"doc": meaning})


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes."""

    stream: str = option("digits", "built-in name, river:module.Class, a file, or a folder of jsonl files")
    learner: str = option(DEFAULT_LEARNER, "name of the learner, or river:module.Class")
    label: str | None = option(None, "the target's column in a file (default: the last one; in npz the array y)")
    batch: int = option(1, "rows that are predicted together, then learnt together")
    delay: int = option(0, "rows that pass before a label comes")
    limit: int | None = option(None, "end after this many rows")
    seed: int = option(0, "seed of the learner, and of a stream that draws its rows")
    evaluate_every: int | Literal["auto"] = option(
        "auto", "updates between two evaluations of all experiences seen; auto: at their ends only; 0: none"
    )
    evaluate_rows: int | None = option(None, "held-out rows of each experience to evaluate on (none: all of them)")
    evaluate_worker: bool = option(False, "evaluate in a process of its own; what falls due while it is busy is missed")
    wp_reference: bool = option(False, "window plasticity as the authors' code has it, not as it is defined")
    device: str = option("cpu", "cpu or cuda")
    every: int = option(100, "rows between two records")
    window: int = option(1000, "rows of the sliding window")
    fading: float = option(0.999, "fading factor of the faded metrics")
    time_slots: int = option(10, "equal slots of time by which the scores of a click stream are told")
    pending: int = option(10_000, "rows that may wait for their label")
    guard: bool = option(True, "roll a broken learner back to its last good snapshot")
    stand_in: bool = option(True, "let the source model answer while the guard holds adaptation to be worse than it")
    forget_every: int = option(0, "rows between two simulated requests to forget rows met before (0: none)")
    forget_rows: int = option(10, "rows that a simulated request names")
    forget_gap: bool = option(False, "after every request compare the learner with one trained anew on what remains")
    stream_params: dict[str, Any] = field(default_factory=dict)
    learner_params: dict[str, Any] = field(default_factory=dict)


LIMITS = {"batch": 1, "delay": 0, "limit": 1, "seed": 0, "every": 1, "window": 1, "pending": 1, "evaluate_every": 0}
LIMITS |= {"evaluate_rows": 1, "time_slots": 1}


def check(config: RunConfig) -> RunConfig:
    """The same configuration, or ``InputError`` for a value outside its range."""
    for name, lowest in LIMITS.items():
        value = getattr(config, name)
        if isinstance(value, int) and value < lowest:
            raise InputError(f"{name.replace('_', '-')}: must be at least {lowest}, not {value}")
    if not 0 < config.fading < 1:
        raise InputError(f"fading: must be between 0 and 1, not {config.fading}")
    if config.device not in ("cpu", "cuda"):
        raise InputError(f"device: must be cpu or cuda, not {config.device!r}")
    if config.delay >= config.pending:
        raise InputError(f"delay: {config.delay} rows cannot wait where pending is {config.pending}")
    return config


def resolve(given: Mapping[str, Any], *, settings: Iterable[str] = (), config: Path | None = None) -> RunConfig:
    """A complete configuration: the file's values, then the given ones, then the settings, defaults for the rest.

    given: keys of ``RunConfig`` with values or text. settings: ``key=value`` for stream or learner. Another stream or
    learner than the file's starts from its own defaults, not from parameters meant for something else.
    """
    types = get_type_hints(RunConfig)
    base = {} if config is None else read_toml(config)
    named = {k: v if k in TABLES else convert(v, types[k], k.replace("_", "-")) for k, v in given.items()}
    for table, owner in TABLES.items():
        if named.get(owner, base.get(owner)) != base.get(owner):
            base.pop(table, None)
    flat = RunConfig(**{**base, **named})
    describe(flat.stream)  # says what is wrong with the name
    stream, learner = stream_params(flat.stream), learner_params(flat.learner)
    for_stream, for_learner = assign(settings, stream, learner)
    return check(
        replace(
            flat,
            stream_params=complete({**flat.stream_params, **for_stream}, stream, f"stream {flat.stream}"),
            learner_params=complete({**flat.learner_params, **for_learner}, learner, f"learner {flat.learner}"),
        )
    )


# --- values -----------------------------------------------------------------------------------------------------


def convert(value: Any, kind: Any, name: str) -> Any:
    """A value from a flag or a file as the annotated type; ``InputError`` names the key.

    >>> convert("1e-7", float, "delta"), convert("a,b", tuple[str, ...], "drop"), convert("none", int | None, "limit")
    (1e-07, ('a', 'b'), None)
    """
    import msgspec

    if isinstance(value, str):
        if type(None) in get_args(kind) and value.lower() in ("none", "null"):
            return None
        if kind is bool:
            value = value.lower()
        if get_origin(kind) is tuple:
            value = [part.strip() for part in value.split(",") if part.strip()]
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as fault:
        allowed = f": choose from {', '.join(_choices(kind))}" if "enum" in str(fault) else ""
        raise InputError(f"{name}: {str(fault).replace('`', '')}{allowed or f' ({value!r})'}") from None


def _choices(kind: Any) -> list[str]:
    """What a type with a Literal in it allows, in words."""
    if get_origin(kind) in (Union, UnionType):
        return [words for part in get_args(kind) for words in _choices(part)]
    return ["a number"] if kind in (int, float) else [str(value) for value in get_args(kind)]


def make_stream(config: RunConfig) -> Stream:
    """The stream of a run, cut to its limit, labels delayed, rows gathered into batches.

    Where every row is an event of its own the blocks of the source are kept, since the loop goes through them row by
    row with the same result; a delay needs single rows, for it is counted in rows.
    """
    stream = open_stream(config.stream, seed=config.seed, label=config.label, **config.stream_params)
    if config.limit is not None:
        stream = take(stream, config.limit)
    if config.batch > 1 or config.delay:
        stream = rebatch(stream, config.batch)
    stream = delay_labels(stream, config.delay)
    if config.forget_every:
        stream = keep_asking(stream, config.forget_every, config.forget_rows, config.seed)
    return stream


def complete(given: Mapping[str, Any], params: type | None, of: str) -> dict[str, Any]:
    """Every parameter of a dataclass with its value: the given ones converted, the others at their defaults."""
    if params is None:
        return dict(given)
    types = get_type_hints(params)
    names = [f.name for f in fields(params)]
    for key in given:
        if key not in names:
            raise InputError(f"{of} has no parameter {key!r}; it has {', '.join(names) or 'none'}")
    values = {}
    for known in fields(params):
        name = known.name
        if name in given:
            values[name] = convert(given[name], types[name], f"{of}: {name}")
        elif known.default is not MISSING:
            values[name] = known.default
        elif known.default_factory is not MISSING:
            values[name] = known.default_factory()
        else:
            raise InputError(f"{of}: {name} has no default; say --set {name}=VALUE")
    return values


def assign(settings: Iterable[str], stream: type | None, learner: type) -> tuple[dict[str, str], dict[str, str]]:
    """Sort ``--set key=value`` into the stream's and the learner's parameters.

    A key that both have needs its owner named: ``stream.key=value`` or ``learner.key=value``. A stream whose
    parameters are not known beforehand (None) gets what the learner does not have.
    """
    known = {
        "stream": [] if stream is None else [f.name for f in fields(stream)],
        "learner": [f.name for f in fields(learner)],
    }
    given: dict[str, dict[str, str]] = {"stream": {}, "learner": {}}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting}: expected key=value")
        owner, dot, bare = key.strip().partition(".")
        key = bare if dot else owner
        owners = [o for o, names in known.items() if key in names and (not dot or o == owner)]
        if len(owners) > 1:
            raise InputError(f"--set {key}: stream and learner both have it; say stream.{key} or learner.{key}")
        if not owners and stream is None and (not dot or owner == "stream"):
            owners = ["stream"]
        if not owners:
            there = "; ".join(f"{o}: {', '.join(names) or 'none'}" for o, names in known.items())
            raise InputError(f"--set {setting.partition('=')[0]}: no such parameter ({there})")
        given[owners[0]][key] = value.strip()
    return given["stream"], given["learner"]


# --- files ------------------------------------------------------------------------------------------------------


def read_toml(path: Path) -> dict[str, Any]:
    """The keys that a configuration file gives; unknown ones are an ``InputError`` that names them."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise InputError(f"{path}: {fault.strerror or fault}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise InputError(f"{path}: not TOML: {fault}") from None
    types = get_type_hints(RunConfig)
    for key, value in given.items():
        if key not in types:
            raise InputError(f"{path}: unknown key {key!r}; known are {', '.join(types)}")
        if key in TABLES and not isinstance(value, dict):
            raise InputError(f"{path}: {key} must be a table")
    return {k: v if k in TABLES else convert(v, types[k], f"{path}: {k}") for k, v in given.items()}


def to_toml(config: RunConfig, command: str = "") -> str:
    """The whole configuration as TOML that ``read_toml`` reads back to an equal one; the command as a comment."""
    values = asdict(config)
    lines = [f"# {' '.join(command.split())}"] if command else []
    lines += [f"{key} = {_toml(value)}" for key, value in values.items() if key not in TABLES]
    for table in TABLES:
        lines += ["", f"[{table}]", *(f"{key} = {_toml(value)}" for key, value in values[table].items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_toml(str(k))} = {_toml(v)}' for k, v in value.items())}}}"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def difference(kept: RunConfig, asked: RunConfig) -> str | None:
    """The first key in which two configurations differ, with both values; None where they are the same run."""
    for name, value in asdict(kept).items():
        other = getattr(asked, name)
        if name not in TABLES:
            if value != other:
                return f"{name} is {_toml(value)} there, {_toml(other)} was asked for"
        elif plain_tuples(value) != plain_tuples(other):
            key = next(k for k in [*value, *other] if plain_tuples(value).get(k) != plain_tuples(other).get(k))
            return f"{name}.{key} is {_toml(value.get(key))} there, {_toml(other.get(key))} was asked for"
    return None


def plain_tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    """Lists as tuples: TOML knows only one of the two."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
