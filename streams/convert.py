"""From a publisher's files to the one file a stream reads. Each function: (downloaded files, file to write) -> None.

The result is checked by ``content_digest``, which looks at the content and not at how a compressor packed it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .events import Array
from .spec import InputError
from .text_sources import LEFT_OUT, TASKS

GASES = ("Acetaldehyde", "Acetone", "Ammonia", "Ethanol", "Ethylene", "Toluene")
_EMPLOYMENT = "AGEP SCHL MAR RELP DIS ESP CIT MIG MIL ANC NATIVITY DEAR DEYE DREM SEX RAC1P"
EMPLOYMENT_COLUMNS = tuple(_EMPLOYMENT.split())
GAS_BATCHES = (1, 2, 3, 4, 5, 6, 8, 9)


def content_digest(path: Path) -> str:
    """sha256 of the uncompressed bytes of a .gz, or of names, dtypes, shapes and bytes of the arrays of an .npz."""
    digest = hashlib.sha256()
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            for key in sorted(archive.files):
                array = np.ascontiguousarray(archive[key])
                digest.update(f"{key} {array.dtype.str} {array.shape} ".encode())
                digest.update(array.tobytes())
        return digest.hexdigest()
    with gzip.open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _table(path: Path) -> Array:
    """float64[N, d] from lines of numbers between blanks or commas."""
    text = path.read_text(encoding="ascii").replace(",", " ")
    rows = len([line for line in text.splitlines() if line.strip()])
    return np.array(text.split(), dtype=np.float64).reshape(rows, -1)


def points_and_labels(sources: Sequence[Path], out: Path) -> None:
    """A file of rows and a file of class codes, as ``x`` float32[N, d] and ``y`` uint8[N]."""
    _save(out, x=_table(sources[0]).astype(np.float32), y=_table(sources[1])[:, 0].astype(np.uint8))


def electricity(sources: Sequence[Path], out: Path) -> None:
    """As above; this source codes "up" as 0, here it is 1."""
    _save(out, x=_table(sources[0]).astype(np.float32), y=(1 - _table(sources[1])[:, 0]).astype(np.uint8))


def covertype(sources: Sequence[Path], out: Path) -> None:
    """54 columns and the cover type 1..7 in one csv."""
    rows = _table(sources[0])
    _save(out, x=rows[:, :54].astype(np.int16), y=(rows[:, 54] - 1).astype(np.uint8))


def gas_sensors(sources: Sequence[Path], out: Path) -> None:
    """Lines ``gas,concentration,128 readings``; one file per batch."""
    parts = []
    for number, path in zip(GAS_BATCHES, sources, strict=True):
        for line in path.read_text(encoding="ascii").splitlines():
            if line.strip():
                gas, _, *readings = line.split(",")
                parts.append((number, GASES.index(gas), [float(v) for v in readings]))
    x = np.array([p[2] for p in parts], dtype=np.float32)
    y, batch = (np.array([p[k] for p in parts], dtype=np.uint8) for k in (1, 0))
    _save(out, x=x, y=y, batch=batch)


def employment(sources: Sequence[Path], out: Path) -> None:
    """Three parquet tables (2015 with labels, later years, their labels), joined by id, in id order."""
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(
            'employment: reading its parquet files needs pyarrow: pip install "driftway[tabular]"'
        ) from None
    first, later, labels = (pq.read_table(path) for path in sources)
    late = dict(zip(labels["id"].to_pylist(), labels["employed"].to_pylist(), strict=True))
    rows = [[int(v) for t in (first, later) for v in t[name].to_pylist()] for name in EMPLOYMENT_COLUMNS]
    ids = [*first["id"].to_pylist(), *later["id"].to_pylist()]
    y = [*first["employed"].to_pylist(), *(late[i] for i in later["id"].to_pylist())]
    year = [*first["year"].to_pylist(), *later["year"].to_pylist()]
    order = np.argsort(ids, kind="stable")
    x = np.array(rows, dtype=np.int8).T[order]
    _save(out, x=x, y=np.array(y, dtype=np.uint8)[order], year=np.array(year, dtype=np.int16)[order])


def spam(sources: Sequence[Path], out: Path) -> None:
    """A zip of dense 0/1 text (744 MB), read line by line, as compressed sparse rows."""
    indices, counts = [], [0]
    with zipfile.ZipFile(sources[0]) as archive:
        with archive.open("spam/spam.data") as file:
            for line in file:
                bits = np.frombuffer(line.replace(b" ", b"").strip(), dtype=np.uint8) == ord("1")
                indices.append(np.flatnonzero(bits).astype(np.uint16))
                counts.append(len(indices[-1]))
                width = len(bits)
        y = np.array(archive.read("spam/spam.labels").split(), dtype=np.uint8)
    pointers = np.cumsum(counts).astype(np.int32)
    _save(out, indices=np.concatenate(indices), indptr=pointers, shape=np.array([len(y), width]), y=y)


def movielens(sources: Sequence[Path], out: Path) -> None:
    """Lines ``user item rating time`` under a header, sorted by time, equal times in the file's order."""
    lines = sources[0].read_text(encoding="ascii").splitlines()[1:]
    rows = np.array([[float(v) for v in line.split("\t")] for line in lines])
    rows = rows[np.argsort(rows[:, 3], kind="stable")]
    kinds = {"user_id": np.int16, "item_id": np.int16, "rating": np.uint8, "timestamp": np.int32}
    _save(out, **{name: rows[:, j].astype(kind) for j, (name, kind) in enumerate(kinds.items())})


def frappe(sources: Sequence[Path], out: Path) -> None:
    """Two files of lines ``label id:1 id:1 ...``, ten ids each: validation and test; a label above 0 is 1."""
    arrays = {}
    for part, path in zip(("validation", "test"), sources, strict=True):
        lines = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
        arrays[f"x_{part}"] = np.array([[int(v.partition(":")[0]) for v in line[1:]] for line in lines], np.int16)
        arrays[f"y_{part}"] = np.array([float(line[0]) > 0 for line in lines], np.uint8)
    _save(out, **arrays)


def text_benchmark(sources: Sequence[Path], out: Path) -> None:
    """JSON lists of {sentence, label}, a task's training and test file or its only one, as lines of one file.

    One generator draws them all in turn: at most 1,000 training and 400 test rows, as many of each label where there
    are.
    """
    rng, paths, lines = np.random.default_rng(7), iter(sources), []
    for name, share in TASKS:
        family, _, task = name.partition("/")
        train = json.loads(next(paths).read_bytes())
        if share:
            order, n = rng.permutation(len(train)), int(share * len(train))
            first, rest = [train[i] for i in order[:n]], [train[i] for i in order[n:]]
            train, test = (first, rest) if task == "dbpedia" else (rest, first)
        else:
            test = json.loads(next(paths).read_bytes())
        for split, rows, n in (("train", train, 1000), ("test", test, 400)):
            for row in _balanced(rows, n, rng):
                found = {"task": task, "family": family, "split": split, "label": row["label"]}
                if task not in LEFT_OUT:
                    lines.append(json.dumps(found | {"sentence": row["sentence"]}, ensure_ascii=False) + "\n")
    _gzip(io.BytesIO("".join(lines).encode("utf-8")), out)


def _balanced(rows: list[dict[str, Any]], n: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """``n`` rows at most, as many of each label, in random order."""
    labels, drawn = sorted({row["label"] for row in rows}), []
    for label in labels:
        mine = [row for row in rows if row["label"] == label]
        drawn += [mine[i] for i in rng.permutation(len(mine))[: n // len(labels)]]
    return [drawn[i] for i in rng.permutation(len(drawn))]


def zipped_bytes(sources: Sequence[Path], out: Path) -> None:
    """The file unchanged, gzipped."""
    with open(sources[0], "rb") as file:
        _gzip(file, out)


def unpacked_gzip(sources: Sequence[Path], out: Path) -> None:
    """A gzipped file as it is."""
    shutil.copyfile(sources[0], out)


def airlines(sources: Sequence[Path], out: Path) -> None:
    """The csv in a zip, from latin-1 to UTF-8."""
    with zipfile.ZipFile(sources[0]) as archive:
        text = archive.read("allyears2k_headers.csv").decode("latin-1")
    _gzip(io.BytesIO(text.encode("utf-8")), out)


def bike_sharing(sources: Sequence[Path], out: Path) -> None:
    """The csv without the blanks that pad its cells."""
    lines = sources[0].read_bytes().decode("ascii").split("\r\n")
    text = "\n".join(",".join(cell.strip() for cell in line.split(",")) for line in lines)
    _gzip(io.BytesIO(text.encode("ascii")), out)


def _gzip(file: io.BufferedIOBase | io.BufferedReader, out: Path) -> None:
    with open(out, "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
        shutil.copyfileobj(file, packed)


def _save(out: Path, **arrays: Array) -> None:
    """``out`` has a temporary name that NumPy must not lengthen, hence the open file."""
    with open(out, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
