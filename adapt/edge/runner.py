"""Runs an edge bundle: answers rows and goes on adapting, with NumPy and ONNX Runtime and nothing else.

    python run.py --input stream.csv --output predictions.csv     rows of a file (.csv, .npz), answers to a file
    python run.py --input -                                       JSON lines on stdin, answers as lines on stdout

{"id": 7, "x": [...]} is answered by {"id": 7, "answer": ..., "score": ...}; {"id": 7, "y": ...} is the late label of a
row; {"forget": [7]} takes learnt rows out; {"save": true} writes the state, as the end of the input does. In a program:
``runner = Runner(folder, state="adapted.safetensors")``, ``runner.adapt(x)``, ``runner.save("adapted.safetensors")``.

The state lies in arrays that are made once: a step reads one set of them, writes the other, and nothing is copied. What
it wrote counts only if all is finite; where the answers of a window fall into far fewer classes than those of the state
at export to the same rows, the last good state comes back. A saved state is whole or not there, and checked when read.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

FORMAT = 1
EXPORTED, GOOD = 2, 3
BINDINGS = 32
"""That are kept ready: up to four for every number of rows."""
PENDING = 10_000
"""Rows that may wait for their label."""
KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "|i1", "U8": "|u1", "BOOL": "|b1"}


class BundleError(Exception):
    """What cannot work, in one line for a person."""


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays and notes of a safetensors file, which must have the digest that its notes say, if they say any."""
    try:
        body = path.read_bytes()
        data = 8 + int.from_bytes(body[:8], "little")
        header = json.loads(body[8:data])
        notes = header.pop("__metadata__", {})
        if notes.pop("sha256", None) not in (None, hashlib.sha256(body[data:]).hexdigest()):
            raise BundleError(f"{path} was altered: its sha256 differs")
        arrays = {}
        for name, about in header.items():
            size = math.prod(about["shape"])
            flat = np.frombuffer(body, KINDS[about["dtype"]], size, data + about["data_offsets"][0])
            arrays[name] = flat.reshape(about["shape"]).copy()
        return arrays, {k: json.loads(v) for k, v in notes.items()}
    except (ValueError, KeyError, TypeError) as fault:
        raise BundleError(f"{path}: not a safetensors file ({fault})") from None


def write_tensors(path: Path, arrays: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
    """Written beside its place, brought to the disk, then renamed: a reader finds the old file or the new one."""
    names, header, body = {np.dtype(v).str: k for k, v in KINDS.items()}, {}, b""
    for name, array in arrays.items():
        place = [len(body), len(body) + array.nbytes]
        header[name] = {"dtype": names[array.dtype.str], "shape": array.shape, "data_offsets": place}
        body += array.tobytes()
    said = {k: json.dumps(v) for k, v in notes.items()}
    text = json.dumps({**header, "__metadata__": {**said, "sha256": hashlib.sha256(body).hexdigest()}}).encode()
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + body)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    if os.name == "posix":  # so that the renaming is on the disk too
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def read_bundle(folder: Path) -> dict[str, Any]:
    """bundle.json, if it and every file beside it are as they were written."""
    try:
        about: dict[str, Any] = json.loads((folder / "bundle.json").read_bytes())
        seal = about.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError):
        raise BundleError(f"{folder}: holds no edge bundle") from None
    if seal != hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest():
        raise BundleError(f"{folder / 'bundle.json'} was altered")
    if about["format"] != FORMAT:
        raise BundleError(f"{folder}: a bundle of format {about['format']}, this runner reads {FORMAT}")
    for name, promise in about["files"].items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != promise["sha256"]:
            raise BundleError(f"{folder / name} was altered: its sha256 differs")
    return {**about, "sha256": seal}


class Graph:
    """One verb of a bundle. sets: of state arrays, of which steps write the first two in turn (``Runner``)."""

    def __init__(self, file: Path, about: Mapping[str, Any], sets: Sequence[Mapping[str, Any]], threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(os.fspath(file), options, providers=["CPUExecutionProvider"])
        self.about, self.sets = about, sets
        self.touched = list(dict.fromkeys([*about["reads"], *about["writes"]]))
        self.bound: dict[tuple[int, ...], tuple[Any, dict[str, Any], dict[str, Any]]] = {}

    def run(self, rows: Mapping[str, Any], side: Mapping[str, int], *, source: bool = False) -> dict[str, Any]:
        """The answers, valid until the next run; what the verb writes lies in the other set then.

        source: by the state at export.
        """
        key = (len(next(iter(rows.values()))), int(source), *[side[name] for name in self.touched])
        if key not in self.bound:
            while len(self.bound) >= BINDINGS:
                self.bound.pop(next(iter(self.bound)))
            self.bound[key] = self._bind(rows, side, source)
        binding, given, answers = self.bound[key]
        for name, array in rows.items():
            given[name][...] = array
        self.session.run_with_iobinding(binding)
        return answers

    def _bind(self, rows: Mapping[str, Any], side: Mapping[str, int], source: bool) -> Any:
        given, answers = {name: np.zeros_like(array) for name, array in rows.items()}, {}
        n = len(next(iter(rows.values())))
        for name, about in self.about["answers"].items():
            answers[name] = np.zeros([n if s is None else s for s in about["shape"]], about["dtype"])
        old = {f"old.{n}": self.sets[EXPORTED if source else side[n]][n] for n in self.about["reads"]}
        new = {f"new.{n}": self.sets[1 - side[n]][n] for n in self.about["writes"]}
        binding = self.session.io_binding()
        for name, array in {**given, **old}.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name, array in {**answers, **new}.items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        return binding, given, answers


class Guard:
    """Tells whether the answers fall into far fewer classes than those of the state at export to the same rows."""

    def __init__(self, limits: Mapping[str, Any], classes: int) -> None:
        self.limits, self.counts = limits, np.zeros((2, classes), np.int64)

    def look(self, answers: Any, source: Any) -> str:
        """collapsed or good after a whole window of class codes, which then begins anew; else nothing."""
        for counts, codes in zip(self.counts, (answers, source)):
            np.add.at(counts, codes, 1)
        if self.counts[0].sum() < self.limits["window"]:
            return ""
        now, usual = (effective(counts) for counts in self.counts)
        self.counts[:] = 0
        return "collapsed" if now < self.limits["share"] * usual else "good"


def effective(counts: Any) -> float:
    """How many classes there are, as it were: exp of the entropy."""
    p = counts[counts > 0] / counts.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def copy(of: Mapping[str, Any], to: Mapping[str, Any]) -> None:
    """Into the arrays that are there, by name."""
    for name, array in of.items():
        to[name][...] = array


def _by_id(arrays: Mapping[str, Any], name: str) -> dict[int, Any]:
    return dict(zip(arrays[f"{name}.ids"].tolist(), arrays[f"{name}.x"]))


def _finite(array: Any) -> bool:
    """Whether all is; numbers whose squares do not fit count as infinite."""
    flat = array.reshape(-1)
    return array.dtype.kind != "f" or math.isfinite(flat.dot(flat))


class Runner:
    """A bundle at work. state: a saved state to go on from, if there is such a file. threads: of ONNX Runtime."""

    def __init__(self, folder: str | Path, *, state: str | Path | None = None, threads: int = 1) -> None:
        self.folder, self.threads = Path(folder), threads
        self.about = read_bundle(self.folder)
        self.verbs, columns, self.dtype = self.about["verbs"], self.about["stream"]["columns"], self.about["rows"]
        self.width, self.classes = len(columns), self.verbs["predict"]["answers"]["scores"]["shape"][1]
        self.gaps = np.array([c["missing"] for c in columns]) & (self.dtype == "float64")
        arrays, _ = read_tensors(self.folder / "state.safetensors")
        first = {name: arrays[name] for name in self.about["state"]}
        self.sets = [{k: v.copy() for k, v in first.items()} for _ in range(4 if "adapt" in self.verbs else 2)]
        self.sets += [{}] * (4 - len(self.sets))
        """Two that steps read and write in turn, the state at export and the last good one, which adapting needs."""
        moves, taught = (self.verbs[v]["writes"] if v in self.verbs else () for v in ("adapt", "learn"))
        self.moved = [n for n in moves if n not in taught]
        """What a rollback takes back: what labels taught stays."""
        self.side = dict.fromkeys(first, 0)
        """Which of the first two holds what is true now, by name."""
        self.graphs: dict[str, Graph] = {}
        self.guard = Guard(self.about["guard"], self.classes)
        self.trace: Any = None
        """What learning needs of the moment of the last answer, by row, where ``predict`` gives it."""
        self.waiting: dict[int, Any] = {}
        self.learnt: dict[int, Any] = _by_id(arrays, "learnt") if "learnt.ids" in arrays else {}
        """Rows by id: those without a label yet; those with one, and its code behind, that can be forgotten."""
        self.counts = dict.fromkeys(("rows", "refused", "steps", "resets", "learnt", "forgotten", "rollbacks"), 0)
        self.cursor: dict[str, Any] = {}
        self._ahead: tuple[Any, dict[str, Any]] | None = None
        if state is not None and Path(state).exists():
            arrays, notes = read_tensors(Path(state))
            if notes.get("bundle") != self.about["sha256"]:
                raise BundleError(f"{state} is the state of another bundle; delete it to begin anew")
            self.take(arrays, notes)

    def state(self) -> dict[str, Any]:
        """What moves, as it is now, by reference."""
        return {k: self.sets[s][k] for k, s in self.side.items()}

    def predict(self, x: Any) -> Any:
        """Scores float[n, C] of rows [n, d]; NaN for a row that cannot be one. Changes nothing."""
        return self._scores("predict", self.rows(x))

    def adapt(self, x: Any) -> Any:
        """The scores before the step, and the step."""
        scores = self.ahead(x)
        self.commit()
        return scores

    def ahead(self, x: Any) -> Any:
        """The scores, and a step that does not count until ``commit``."""
        return self._scores("adapt" if "adapt" in self.verbs else "predict", self.rows(x))

    def commit(self) -> None:
        """Let the step of ``ahead`` count, unless it broke something; look after the answers."""
        if self._ahead is None:
            return
        (x, answers), self._ahead = self._ahead, None
        took, _, reset, _ = answers["outcome"].tolist()
        self.counts["steps"] += int(took)
        self.counts["resets"] += int(reset)
        if not self._take("adapt"):
            self.counts["rollbacks"] += 1
        elif took and self.counts["steps"] % self.guard.limits["every"] == 0:
            source = self._run("adapt", {"x": x}, source=True)
            said = self.guard.look(answers["scores"].argmax(1), source["scores"].argmax(1))
            if said == "collapsed":
                self.counts["rollbacks"] += 1
                copy({n: self.sets[GOOD][n] for n in self.moved}, self.state())
            if said:  # a good state is used once: if it goes wrong again, that at export is next
                copy(self.state() if said == "good" else self.sets[EXPORTED], self.sets[GOOD])

    def _take(self, verb: str) -> bool:
        """Turn to what the verb wrote, if all of it is finite; else stay with what there was."""
        written, side = self.verbs[verb]["writes"], self.side
        if not all(_finite(self.sets[1 - side[name]][name]) for name in written):
            return False
        for name in written:
            side[name] = 1 - side[name]
        return True

    def rows(self, x: Any) -> Any:
        """[n, d] in the bundle's type; ``BundleError`` for what are no rows of its stream."""
        try:
            rows = np.asarray(x, self.dtype)
        except (TypeError, ValueError):
            raise BundleError("rows must be numbers") from None
        rows = rows[None] if rows.ndim == 1 else rows.reshape(len(rows), math.prod(rows.shape[1:]))
        if rows.shape[1] != self.width and len(rows):
            raise BundleError(f"a row has {rows.shape[1]} numbers, this bundle takes {self.width}")
        return rows

    def _scores(self, verb: str, x: Any) -> Any:
        scores = np.full((len(x), self.classes), np.nan, np.float32)
        sound = np.isfinite(x)
        sound = (sound | (np.isnan(x) & self.gaps)).all(1) if not sound.all() else slice(None)
        fit = x[sound]
        answers = self._run(verb, {"x": fit}) if len(fit) else None
        if answers is not None:
            scores[sound] = answers["scores"]
            if "trace" in answers:
                self.trace = np.full((len(x), answers["trace"].shape[1]), np.nan, self.dtype)
                self.trace[sound] = answers["trace"]
        if verb == "adapt":
            self._ahead = None if answers is None else (fit, answers)
        return scores

    def _run(self, verb: str, rows: Mapping[str, Any], *, source: bool = False) -> dict[str, Any]:
        if verb not in self.graphs:
            if verb not in self.verbs:
                raise BundleError(f"this bundle cannot {verb}; it can {', '.join(self.verbs)}")
            about = self.verbs[verb]
            self.graphs[verb] = Graph(self.folder / about["file"], about, self.sets, self.threads)
        return self.graphs[verb].run(rows, self.side, source=source)

    def step(self, ids: Sequence[int], x: Any) -> Any:
        """``adapt`` on rows with ids, which are remembered until their labels come if labels teach this bundle."""
        x = self.rows(x)
        scores = self.adapt(x)
        sound = np.isfinite(scores[:, 0])
        self.counts["rows"] += len(x)
        self.counts["refused"] += int((~sound).sum())
        if "learn" in self.verbs:
            kept = x if self.trace is None else self.trace
            self.waiting.update((int(i), row.copy()) for i, row, fit in zip(ids, kept, sound) if fit)
            while len(self.waiting) > PENDING:
                self.waiting.pop(next(iter(self.waiting)))
        return scores

    def label(self, ids: Sequence[int], y: Sequence[int]) -> int:
        """Learn from late labels, class codes by row id; returns how many could be."""
        known = {int(i): int(c) for i, c in zip(ids, y) if int(i) in self.waiting and 0 <= c < self.classes}
        if known:
            self._learn(np.stack([self.waiting[i] for i in known]), np.array(list(known.values())), "learn")
        for i, code in known.items():
            row = self.waiting.pop(i)
            if "forget" in self.verbs:
                self.learnt[i] = np.append(row, code)
        return len(known)

    def learn(self, x: Any, y: Any, verb: str = "learn") -> None:
        """Learn rows with their class codes, all of them or none."""
        x, codes = self.rows(x), np.asarray(y, np.int64)
        if codes.shape != (len(x),) or (codes < 0).any() or (codes >= self.classes).any():
            raise BundleError(f"labels must be one class code below {self.classes} for each row")
        if "trace" in self.verbs["predict"]["answers"]:
            self._scores("predict", x)
            x = self.trace
        self._learn(x, codes, verb)

    def _learn(self, x: Any, codes: Any, verb: str) -> None:
        """x: rows as the verb takes them, in their first input."""
        if verb not in self.verbs:
            raise BundleError(f"this bundle cannot {verb}; it can {', '.join(self.verbs)}")
        name = self.verbs[verb]["rows"][0]
        at_once = 1 if verb in self.verbs and self.verbs[verb]["single"] else max(1, len(x))
        before = {k: v.copy() for k, v in self.state().items()} if len(x) > at_once else {}
        for i in range(0, len(x), at_once):
            outcome = self._run(verb, {name: x[i : i + at_once], "y": codes[i : i + at_once]})["outcome"]
            if not (outcome[0] and self._take(verb)):
                copy(before, self.state())
                raise BundleError(f"refused to {verb}, nothing was changed: a row is not in the sums, or overflows")
        self.counts["learnt" if verb == "learn" else "forgotten"] += len(x)

    def forget(self, ids: Sequence[int]) -> None:
        """Take learnt rows out again, all of them or none; the good state of before goes, for it holds them."""
        if not ids or len(set(ids)) != len(ids) or not set(ids) <= set(self.learnt):
            raise BundleError("refused to forget, nothing was changed: a row is named twice or not kept as learnt")
        rows = np.stack([self.learnt[i] for i in ids])
        self._learn(rows[:, :-1], rows[:, -1].astype(np.int64), "forget")
        copy(self.sets[EXPORTED], self.sets[GOOD])
        for i in ids:
            del self.learnt[i]

    def kept(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Everything that later answers depend on: arrays by reference, and plain values."""
        arrays = {f"state.{k}": v for k, v in self.state().items()}
        arrays |= {f"good.{k}": v for k, v in self.sets[GOOD].items()}
        for name, rows in (("waiting", self.waiting), ("learnt", self.learnt)):
            arrays[f"{name}.ids"] = np.array(list(rows), np.int64)
            arrays[f"{name}.x"] = np.array(list(rows.values()), self.dtype).reshape(len(rows), -1 if rows else 0)
        notes = {"counts": self.counts, "cursor": self.cursor, "bundle": self.about["sha256"]}
        return arrays | {"guard": self.guard.counts}, notes

    def take(self, arrays: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        """Go on from what ``kept`` gave."""
        for part, state in (("state", self.state()), ("good", self.sets[GOOD])):
            copy({name: arrays[f"{part}.{name}"] for name in state}, state)
        self.guard.counts[...] = arrays["guard"]
        for name in ("waiting", "learnt"):
            setattr(self, name, _by_id(arrays, name))
        self._ahead = None
        self.counts, self.cursor = dict(notes["counts"]), dict(notes["cursor"])

    def save(self, path: str | Path) -> None:
        """Write it, whole or not at all."""
        write_tensors(Path(path), *self.kept())

    def answer(self, scores: Any) -> tuple[Any, float | None]:
        """The class that a row's scores answer and its score; None for a row that was refused."""
        names, best = self.about["stream"]["classes"], int(scores.argmax())
        return (names[best] if names else best, float(scores[best])) if math.isfinite(scores[0]) else (None, None)

    def code(self, y: Any) -> int:
        """Of a class by its name, or of a code as it is; -1 for what is neither."""
        names = self.about["stream"]["classes"]
        return names.index(str(y)) if names and str(y) in names else int(y) if str(y).isdigit() else -1


def read(path: str, runner: Runner, label: str | None) -> Iterator[tuple[int, Any, int]]:
    """Rows of a file one by one: (id, numbers, class code or -1). label: the target's column in a CSV file."""
    if path.endswith(".npz"):
        with np.load(path) as found:
            y = found["y"] if label and "y" in found else np.full(len(found["x"]), -1)
            yield from ((i, row, int(code)) for i, (row, code) in enumerate(zip(found["x"], y)))
        return
    columns = [(c["name"], c["categories"]) for c in runner.about["stream"]["columns"]]
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        for name in {name for name, _ in columns} - set(rows.fieldnames or ()):
            raise BundleError(f"{path}: there is no column {name!r}")
        for i, row in enumerate(rows):
            numbers = np.array([_number(row[name], categories) for name, categories in columns])
            yield int(row.get("id") or i), numbers, runner.code(row.get(label)) if label else -1


def _number(cell: str | None, categories: Sequence[str] | None) -> float:
    """NaN for an empty cell, infinity for what has no number: that row is refused."""
    try:
        return math.nan if not cell else float(cell) if categories is None else float(categories.index(cell))
    except ValueError:
        return math.inf


def follow(runner: Runner, options: argparse.Namespace) -> None:
    """Answer a file from where the saved state left it, which also says how much of the output belongs to it."""
    cursor = runner.cursor if runner.cursor.get("input") == options.input else {"rows": 0, "bytes": 0}
    done, rows = cursor["rows"], read(options.input, runner, options.label)
    with open(options.output, "r+b" if done else "wb") as out:
        out.truncate(cursor["bytes"])
        out.seek(cursor["bytes"])
        out.write(b"" if done else b"id,answer,score\n")
        batch = list(islice(rows, done, done + options.batch))
        while batch:
            ids, codes = [i for i, _, _ in batch], {i: c for i, _, c in batch if c >= 0}
            for i, scores in zip(ids, runner.step(ids, np.stack([row for _, row, _ in batch]))):
                answer, score = runner.answer(scores)
                out.write(f"{i},,\n".encode() if answer is None else f"{i},{answer},{score:.6g}\n".encode())
            runner.label(list(codes), list(codes.values()))
            done += len(batch)
            batch = list(islice(rows, options.batch))
            if done - cursor["rows"] >= options.every or not batch:
                out.flush()
                os.fsync(out.fileno())
                cursor = runner.cursor = {"input": options.input, "rows": done, "bytes": out.tell()}
                runner.save(options.state)


def reply(runner: Runner, said: Any, state: str) -> dict[str, Any]:
    """The answer to one line of JSON."""
    if "x" in said:
        answer, score = runner.answer(runner.step([said["id"]], [said["x"]])[0])
        return {"id": said["id"], "answer": answer, "score": score}
    if "y" in said:
        return {"id": said["id"], "learnt": runner.label([said["id"]], [runner.code(said["y"])])}
    if "forget" in said:
        runner.forget(said["forget"])
        return {"forgotten": len(said["forget"])}
    runner.save(state)
    return {"saved": state}


def main(argv: Sequence[str] | None = None) -> int:
    """0 done, 2 bad usage or input, told in one line."""
    parser = argparse.ArgumentParser(description="Answers the rows of a stream and adapts to them.")
    parser.add_argument("--input", required=True, help="a .csv or .npz file, or - for JSON lines on stdin")
    parser.add_argument("--output", default="predictions.csv", help="where the answers to a file go")
    parser.add_argument("--bundle", default=os.path.dirname(os.path.abspath(__file__)), help="its folder")
    parser.add_argument("--state", help="where what was adapted is kept (adapted.safetensors in the bundle)")
    parser.add_argument("--label", help="column of a CSV file, or y of an .npz, with labels to learn from")
    parser.add_argument("--batch", type=int, default=1, help="rows answered together")
    parser.add_argument("--every", type=int, default=1000, help="rows between two savings of the state")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    options.state = options.state or os.path.join(options.bundle, "adapted.safetensors")
    try:
        runner = Runner(options.bundle, state=options.state, threads=options.threads)
        if options.input != "-":
            follow(runner, options)
            return 0
        for line in sys.stdin:
            try:
                said = reply(runner, json.loads(line), options.state)
            except (BundleError, ValueError, KeyError, TypeError) as fault:
                said = {"error": f"{type(fault).__name__}: {fault}"}
            print(json.dumps(said), flush=True)
        runner.save(options.state)
        return 0
    except (BundleError, OSError, KeyError, ValueError) as fault:
        print(f"run.py: error: {' '.join(str(fault).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
