"""Runs an edge bundle: answers rows and goes on adapting, with NumPy and ONNX Runtime and nothing else.

    python run.py --input stream.csv --output predictions.csv     rows of a file (.csv, .npz), answers to a file
    python run.py --input -                                       JSON lines on stdin, answers as lines on stdout

{"id": 7, "x": [...]} is answered by {"id": 7, "answer": ..., "score": ...}; {"id": 7, "y": ...} is the late label of a
row; {"forget": [7]} takes learnt rows out; {"save": true} writes the state, as the end of the input does. In a program:
``runner = Runner(folder, state="adapted.npz")``, ``runner.adapt(x)``, ``runner.save("adapted.npz")``.

The state lies in arrays that are made once: a step reads some, writes others, and they change places. What it wrote
counts only if all is finite; where the answers of a window fall into far fewer classes than those to the same rows
without what adapting moved, the last good state comes back. A saved state, an .npz with its sha256 behind, is whole.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import math
import os
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice, repeat
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

FORMAT = 1
BINDINGS = 64  # of arrays to graphs that are kept ready: up to four for every verb and number of rows
PENDING = 10_000  # rows that may wait for their label
BAD_INPUT = (ValueError, KeyError, TypeError, EOFError, BadZipFile)
KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "|i1", "U8": "|u1", "BOOL": "|b1"}


class BundleError(ValueError):
    """What cannot work, in one line for a person."""


def read_bundle(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """bundle.json and the arrays of state.safetensors, if they and every file beside them are as they were written."""
    try:
        about = json.loads((folder / "bundle.json").read_bytes())
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
    body, arrays = (folder / "state.safetensors").read_bytes(), {}
    start = 8 + int.from_bytes(body[:8], "little")
    for name, tensor in json.loads(body[8:start]).items():
        arrays[name] = np.ndarray(tensor["shape"], KINDS[tensor["dtype"]], body, start + tensor["data_offsets"][0])
    return {**about, "sha256": seal}, arrays


def copy(of: Mapping[str, Any], to: Mapping[str, Any]) -> None:
    """Values into the arrays that are there, of names that both have."""
    for name in of.keys() & to.keys():
        to[name][...] = of[name]


class Runner:
    """A bundle at work. state: a saved state to go on from, if there is such a file. threads: of ONNX Runtime.

    now, spare: the state, and arrays like it for steps to write, which then change places with it. exported, good: of
    that what adapting moves and labels do not teach, at export and when the guard last found it good. waiting, learnt:
    rows by id without a label yet, and those that can be forgotten, class codes behind. trace: what learning needs of
    the moment of the last answer, by row, where the bundle's ``predict`` gives it.
    """

    def __init__(self, folder: str | Path, *, state: str | Path | None = None, threads: int = 1) -> None:
        self.folder, self.threads = Path(folder), threads
        self.about, arrays = read_bundle(self.folder)
        self.verbs, self.dtype, columns = self.about["verbs"], self.about["rows"], self.about["stream"]["columns"]
        self.columns = [(c["name"] + ".".join(map(str, i)), c) for c in columns for i in np.ndindex(*c["shape"])]
        self.width, self.classes = len(self.columns), self.verbs["predict"]["answers"]["scores"]["shape"][1]
        self.gaps = np.array([c["missing"] for _, c in self.columns]) & (self.dtype == "float64")
        self.names = self.about["stream"]["classes"] or range(self.classes)
        self.codes = {str(c): c for c in range(self.classes)} | {str(name): c for c, name in enumerate(self.names)}
        moves, taught = (self.verbs[v]["writes"] if v in self.verbs else () for v in ("adapt", "learn"))
        self.now = {k: arrays[k].copy() for k in self.about["state"]}
        self.spare = {k: arrays[k].copy() for verb in self.verbs.values() for k in verb["writes"]}
        self.exported, self.good = ({k: arrays[k].copy() for k in moves if k not in taught} for _ in range(2))
        self.seen = np.zeros((2, self.classes), np.int64)
        self.trace: Any = None
        self.learnt = dict(zip(arrays.get("learnt.ids", np.zeros(0)).tolist(), arrays.get("learnt.x", ())))
        self.counts = dict.fromkeys(("rows", "refused", "steps", "resets", "learnt", "forgotten", "rollbacks"), 0)
        self.waiting, self.cursor, self._sessions, self._bound = (dict[Any, Any]() for _ in range(4))
        self._ahead: tuple[Any, dict[str, Any]] | None = None
        engine = self.about.get("engine")  # sources in place of graphs, which keep what is in ``now`` themselves
        self._engine = engine and runpy.run_path(f"{self.folder / engine['file']}")["Engine"](engine, self.now)
        if state is not None and Path(state).exists():
            try:
                body = Path(state).read_bytes()
                if hashlib.sha256(memoryview(body)[:-32]).digest() != body[-32:]:
                    raise ValueError("torn, altered, or by an older runner: its sha256 differs")
                with np.load(io.BytesIO(body)) as found:
                    self.take(dict(found))
            except BAD_INPUT as fault:
                raise BundleError(f"{state}: no state to go on from ({fault}); delete it to begin anew") from None

    def predict(self, x: Any, *, ahead: bool = False) -> Any:
        """Scores float[n, C] of rows [n, d], NaN for what cannot be a row. ahead: with a step, for ``commit``."""
        x, verb = self.rows(x), "adapt" if ahead and "adapt" in self.verbs else "predict"
        scores, sound = np.full((len(x), self.classes), np.nan), np.isfinite(x)
        sound = slice(None) if sound.all() else (sound | (np.isnan(x) & self.gaps)).all(1)
        fit = x[sound]
        answers = self._run(verb, {"x": fit}, self.now) if len(fit) else {"scores": scores[sound]}
        scores[sound] = answers["scores"]
        if "trace" in answers:
            self.trace = np.full((len(x), answers["trace"].shape[1]), np.nan, self.dtype)
            self.trace[sound] = answers["trace"]
        if ahead:
            self._ahead = (fit, answers) if "outcome" in answers else None
        return scores

    def commit(self) -> None:
        """Let the step of ``predict`` ahead count, unless it broke something; look after the answers."""
        if self._ahead is None:
            return
        (x, answers), self._ahead = self._ahead, None
        took, _, reset, _ = answers["outcome"].tolist()
        fine = self._turn("adapt", answers)
        for name, more in (("steps", took), ("resets", reset), ("rollbacks", not fine)):
            self.counts[name] += int(more)
        if fine and took and self.counts["steps"] % self.about["guard"]["every"] == 0:
            self._guard(answers["scores"], self._run("predict", {"x": x}, self.now | self.exported)["scores"])

    def adapt(self, x: Any, ids: Sequence[int] = ()) -> Any:
        """The scores before the step, and the step. Rows with ids wait for their labels, where those teach."""
        x = self.rows(x)
        scores = self.predict(x, ahead=True)
        self.commit()
        sound = np.isfinite(scores[:, 0])
        self.counts["rows"] += len(x)
        self.counts["refused"] += len(x) - int(sound.sum())
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
            self.learn(np.stack([self.waiting[i] for i in known]), list(known.values()), traced=True)
        for i, code in known.items():
            row = self.waiting.pop(i)
            if "forget" in self.verbs:
                self.learnt[i] = np.append(row, code)
        return len(known)

    def learn(self, x: Any, y: Any, verb: str = "learn", *, traced: bool = False) -> None:
        """Learn rows with their class codes, or forget them, all or none. traced: x is their ``trace``."""
        x, codes = np.asarray(x, self.dtype) if traced else self.rows(x), np.asarray(y, np.int64)
        about = self.verbs.get(verb)
        if about is None:
            raise BundleError(f"this bundle cannot {verb}; it can {', '.join(self.verbs)}")
        if not traced and (codes.shape != (len(x),) or (codes < 0).any() or (codes >= self.classes).any()):
            raise BundleError(f"labels must be one class code below {self.classes} for each row")
        if not traced and "trace" in self.verbs["predict"]["answers"]:
            if not np.isfinite(self.predict(x)).all():
                raise BundleError(f"refused to {verb}, nothing was changed: a row is none of this stream's")
            x = self.trace
        at_once = 1 if about["single"] else max(1, len(x))
        before = {name: array.copy() for name, array in self.now.items() if len(x) > at_once}
        for i in range(0, len(x), at_once):
            given = {about["rows"][0]: x[i : i + at_once], "y": codes[i : i + at_once]}
            answers = self._run(verb, given, self.now)
            if not (answers["outcome"][0] and self._turn(verb, answers)):
                copy(before, self.now)
                raise BundleError(f"refused to {verb}, nothing was changed: a row is not in the sums, or overflows")
        self.counts["learnt" if verb == "learn" else "forgotten"] += len(x)

    def forget(self, ids: Sequence[int]) -> None:
        """Take learnt rows out again, all of them or none; the good state of before goes, for it knew them."""
        if not ids or len(set(ids)) != len(ids) or not set(ids) <= set(self.learnt):
            raise BundleError("refused to forget, nothing was changed: a row is named twice or not kept as learnt")
        rows = np.stack([self.learnt[i] for i in ids])
        self.learn(rows[:, :-1], rows[:, -1], "forget", traced=True)
        copy(self.exported, self.good)
        self.learnt = {i: row for i, row in self.learnt.items() if i not in ids}

    def rows(self, x: Any) -> Any:
        """[n, d] in the bundle's type; ``BundleError`` for what are no rows of its stream."""
        try:
            rows = np.asarray(x, self.dtype)
            return rows.reshape(len(rows) if rows.ndim > 1 else 1, self.width)
        except (TypeError, ValueError):
            raise BundleError(f"a row must be {self.width} numbers") from None

    def _run(self, verb: str, rows: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
        """The answers of a verb, valid until its next run; what it writes lies in the spare arrays then."""
        if self._engine:
            return dict(self._engine.run(verb, rows))
        about, n = self.verbs[verb], len(next(iter(rows.values())))
        key = (verb, n, *[id(state[k]) for k in about["reads"]], *[id(self.spare[k]) for k in about["writes"]])
        if key not in self._bound:
            if len(self._bound) >= BINDINGS:
                self._bound.clear()
            self._bound[key] = self._bind(verb, rows, state)
        binding, inputs, outputs = self._bound[key]
        for name, array in rows.items():
            inputs[name][...] = array
        self._sessions[verb].run_with_iobinding(binding)
        return outputs

    def _bind(self, verb: str, rows: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
        """Arrays for rows and answers, and those of the state, to a graph, which is loaded when it is first needed."""
        import onnxruntime as ort  # a bundle of sources does without

        about, n = self.verbs[verb], len(next(iter(rows.values())))
        if verb not in self._sessions:
            options, file = ort.SessionOptions(), os.fspath(self.folder / about["file"])
            options.intra_op_num_threads = self.threads
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            self._sessions[verb] = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        inputs = {f"old.{name}": state[name] for name in about["reads"]} | {k: v.copy() for k, v in rows.items()}
        outputs = {f"new.{name}": self.spare[name] for name in about["writes"]}
        for name, answer in about["answers"].items():
            outputs[name] = np.zeros([n if size is None else size for size in answer["shape"]], answer["dtype"])
        binding = self._sessions[verb].io_binding()
        for bind, arrays in ((binding.bind_ortvalue_input, inputs), (binding.bind_ortvalue_output, outputs)):
            for name, array in arrays.items():
                bind(name, ort.OrtValue.ortvalue_from_numpy(array))
        return binding, inputs, outputs

    def _turn(self, verb: str, answers: Mapping[str, Any]) -> bool:
        """To what the verb wrote, if all is finite (and its squares fit); else stay with what there was."""
        whole, some = self.verbs[verb]["writes"], self.verbs[verb].get("some", {})
        new = [*(self.spare[name] for name in whole), *(answers[f"some.{name}"] for name in some)]
        if not all(math.isfinite(np.vdot(array, array)) for array in new):
            return False
        for name in whole:
            self.now[name], self.spare[name] = self.spare[name], self.now[name]
        for name, which in some.items():
            self.now[name][answers[which]] = answers[f"some.{name}"]
        return True

    def _guard(self, *scores: Any) -> None:
        """Roll back if answers of a whole window fall into far fewer classes than the others, those of the exported."""
        limits = self.about["guard"]
        self.seen += [np.bincount(found.argmax(1), minlength=self.classes) for found in scores]
        if self.seen[0].sum() < limits["window"]:
            return
        p = self.seen / self.seen.sum(1, keepdims=True)
        now, usual = np.exp(-(p * np.log(np.where(p > 0, p, 1))).sum(1))  # how many classes there are, as it were
        collapsed = now < limits["share"] * usual
        if collapsed:
            self.counts["rollbacks"] += 1
            copy(self.good, self.now)
        copy(self.exported if collapsed else self.now, self.good)  # a good state is used once
        self.seen[:] = 0

    def kept(self) -> dict[str, Any]:
        """Everything that later answers depend on, as arrays by name."""
        notes = {"counts": self.counts, "cursor": self.cursor, "bundle": self.about["sha256"]}
        arrays = {"seen": self.seen, "notes": np.frombuffer(json.dumps(notes).encode(), np.uint8)}
        arrays |= {f"now.{k}": v for k, v in self.now.items()} | {f"good.{k}": v for k, v in self.good.items()}
        for name, rows in (("waiting", self.waiting), ("learnt", self.learnt)):
            arrays |= {f"{name}.ids": np.array(list(rows), np.int64), f"{name}.x": np.array(list(rows.values()))}
        return arrays

    def take(self, arrays: Mapping[str, Any]) -> None:
        """Go on from what ``kept`` gave."""
        notes = json.loads(arrays["notes"].tobytes())
        if notes["bundle"] != self.about["sha256"]:
            raise BundleError("this is the state of another bundle")
        if self._engine:
            self._engine.load({name: arrays[f"now.{name}"] for name in self.now})
        for part, held in (("now", self.now), ("good", self.good)):
            copy({name: arrays[f"{part}.{name}"] for name in held}, held)
        by_id = (dict(zip(arrays[f"{name}.ids"].tolist(), arrays[f"{name}.x"])) for name in ("waiting", "learnt"))
        self.waiting, self.learnt = by_id
        self.seen[...], self._ahead = arrays["seen"], None
        self.counts, self.cursor = notes["counts"], notes["cursor"]

    def save(self, path: str | Path) -> None:
        """Beside its place, to the disk, then renamed: there is the old file or the new one, whole."""
        path, draft, body = Path(path), Path(f"{path}.draft"), io.BytesIO()
        np.savez(body, **self.kept())
        with draft.open("wb") as file:
            file.writelines((body.getbuffer(), hashlib.sha256(body.getbuffer()).digest()))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        if os.name == "posix":  # so that the renaming is on the disk too
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)

    def answer(self, scores: Any) -> tuple[Any, float | None]:
        """The class that a row's scores answer and its score; None for a row that was refused."""
        best = int(scores.argmax())
        return (self.names[best], float(scores[best])) if math.isfinite(scores[0]) else (None, None)


def read(path: str, runner: Runner, label: str | None) -> Iterator[tuple[int, Any, int]]:
    """Rows of a file one by one: (id, numbers, class code or -1). label: column of a .csv file, or y of an .npz."""
    if path.endswith(".npz"):
        with open(path, "rb") as archive, np.load(archive) as found:
            yield from zip(count(), found["x"], found["y"] if label else repeat(-1))
        return
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        for name in {*(name for name, _ in runner.columns), *([label] if label else ())} - set(rows.fieldnames or ()):
            raise BundleError(f"{path}: there is no column {name!r}")
        for i, row in enumerate(rows):
            cells = [(row[name], column["categories"]) for name, column in runner.columns]
            try:
                x = [math.nan if not c else float(c if known is None else known.index(c)) for c, known in cells]
            except ValueError:  # a cell that is no number and no category: the row is refused
                x = [math.inf] * len(cells)
            yield int(row.get("id") or i), np.array(x), runner.codes.get(row[label], -1) if label else -1


def follow(runner: Runner, options: argparse.Namespace) -> None:
    """Answer a file from where the saved state left it, which also says how much of the output belongs to it."""
    cursor = runner.cursor if runner.cursor.get("input") == options.input else {"rows": 0, "bytes": 0}
    done = cursor["rows"]
    rows = islice(read(options.input, runner, options.label), done, None)
    batch = list(islice(rows, options.batch))
    with open(options.output, "r+b" if done else "wb") as out:
        out.seek(out.truncate(cursor["bytes"]))
        out.write(b"" if done else b"id,answer,score\n")
        while batch:
            ids, x, codes = zip(*batch)
            for i, scores in zip(ids, runner.adapt(np.stack(x), ids)):
                answer, score = runner.answer(scores)
                out.write(f"{i},,\n".encode() if answer is None else f"{i},{answer},{score:.6g}\n".encode())
            runner.label(ids, codes)
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
        answer, score = runner.answer(runner.adapt([said["x"]], [said["id"]])[0])
        return {"id": said["id"], "answer": answer, "score": score}
    if "y" in said:
        return {"id": said["id"], "learnt": runner.label([said["id"]], [runner.codes.get(str(said["y"]), -1)])}
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
    parser.add_argument("--state", help="where what was adapted is kept (adapted.npz in the bundle)")
    parser.add_argument("--label", help="column of a CSV file, or y of an .npz, with labels to learn from")
    parser.add_argument("--batch", type=int, default=1, help="rows answered together")
    parser.add_argument("--every", type=int, default=1000, help="rows between two savings of the state")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    options.state = options.state or os.path.join(options.bundle, "adapted.npz")
    try:
        runner = Runner(options.bundle, state=options.state, threads=options.threads)
        if options.input == "-":
            for line in sys.stdin:
                try:
                    said = reply(runner, json.loads(line), options.state)
                except BAD_INPUT as fault:
                    said = {"error": f"{type(fault).__name__}: {fault}"}
                print(json.dumps(said), flush=True)
            runner.save(options.state)
        else:
            follow(runner, options)
        return 0
    except (OSError, *BAD_INPUT) as fault:
        print(f"run.py: error: {' '.join(str(fault).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
