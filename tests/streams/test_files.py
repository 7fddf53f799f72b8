"""Files: formats give the same stream, bad rows are rejected one by one, memory is flat, the prefix settles types."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest

N = 1500
KINDS = ("oak", "ash", "elm")


def values() -> tuple[np.ndarray, list[str], list[str]]:
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(N, 2)).round(4)
    return numbers, [KINDS[k] for k in rng.integers(0, 3, N)], [("no", "yes")[int(v > 0)] for v in numbers[:, 0]]


def write(path: Path, suffix: str) -> Path:
    """The same table in any format: numbers a, b (b missing in every 50th row), nominal tree, label y."""
    numbers, trees, labels = values()
    rows = [
        (a, None if i % 50 == 0 else b, t, y) for i, ((a, b), t, y) in enumerate(zip(numbers.tolist(), trees, labels))
    ]
    names = ("a", "b", "tree", "y")
    path = path / f"table{suffix}"
    opener = gzip.open if suffix.endswith(".gz") else open
    if "csv" in suffix or "tsv" in suffix:
        delimiter = "\t" if "tsv" in suffix else ","
        with opener(path, "wt", encoding="utf-8") as file:
            file.writelines(delimiter.join("NA" if v is None else str(v) for v in row) + "\n" for row in [names, *rows])
    elif "jsonl" in suffix:
        with opener(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    elif suffix == ".parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(
            pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), path, row_group_size=700
        )
    else:
        x = np.array([[str(a), "" if b is None else str(b), t] for a, b, t, _ in rows])
        np.savez(path, x=x, y=np.array(labels), feature_names=np.array(names[:3]))
    return path


SUFFIXES = [".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet", ".npz"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_formats_give_equal_data(suffix: str, tmp_path: Path, table: Any, check_seek: Any) -> None:
    path = write(tmp_path, suffix)
    stream = dw.stream(path)
    assert [c.name for c in stream.spec.columns] == ["a", "b", "tree"]
    assert stream.spec.columns[2] == dw.Column("tree", ("ash", "elm", "oak"))
    assert stream.spec.classes == ("no", "yes")
    assert stream.spec.target_name == "y"
    ids, x, y = table(stream)
    numbers, trees, labels = values()
    expected = np.column_stack([numbers, [("ash", "elm", "oak").index(t) for t in trees]])
    expected[::50, 1] = np.nan
    np.testing.assert_array_equal(ids, np.arange(N))
    np.testing.assert_array_equal(x, expected)
    np.testing.assert_array_equal(y, [("no", "yes").index(label) for label in labels])
    check_seek(lambda: dw.stream(path))


def csv(tmp_path: Path, text: str | bytes, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


GOOD = "1.5,2,red,no\n2.5,3,blue,yes\n"


def test_header_or_none(tmp_path: Path, table: Any) -> None:
    bare = dw.stream(csv(tmp_path, GOOD))
    assert [c.name for c in bare.spec.columns] == ["c0", "c1", "c2"]
    assert len(table(bare)[0]) == 2
    named = dw.stream(csv(tmp_path, "\ufeff,b,c,d\r\n" + GOOD.replace("\n", "\r\n")), label="d")
    assert [c.name for c in named.spec.columns] == ["c0", "b", "c"]
    assert table(named)[1][:, 0].tolist() == [1.5, 2.5]
    forced = dw.stream(csv(tmp_path, "1,2,3\n4,5,6\n7,8,9\n"), header="yes")
    assert [c.name for c in forced.spec.columns] == ["1", "2"]
    semicolons = dw.stream(csv(tmp_path, "a;b\n1;0\n2;1\n"))
    assert semicolons.spec.target_name == "b"


@pytest.mark.parametrize(("label", "target"), [(None, "d"), ("b", "b"), ("0", "a"), (1, "b"), ("-2", "c")])
def test_label_by_name_or_number(label: Any, target: str, tmp_path: Path) -> None:
    stream = dw.stream(csv(tmp_path, "a,b,c,d\n" + GOOD), label=label)
    assert stream.spec.target_name == target
    assert [c.name for c in stream.spec.columns] == [n for n in "abcd" if n != target]


def test_target_kind(tmp_path: Path) -> None:
    def target(labels: list[Any], **params: Any) -> str:
        return dw.stream(csv(tmp_path, "a,y\n" + "".join(f"1,{v}\n" for v in labels)), **params).spec.target

    assert target([0, 1] * 50) == "classification"
    assert target(list(range(100))) == "classification"
    assert target(list(range(101))) == "regression"
    assert target([k / 7 for k in range(11)]) == "regression"
    assert target([0.5, 1.5] * 20) == "classification"
    assert target([0, 1] * 50, target="regression") == "regression"
    assert target(["no", "yes"]) == "classification"


def test_class_codes_follow_the_order_of_names(tmp_path: Path, table: Any) -> None:
    stream = dw.stream(csv(tmp_path, "a,y\n1,10\n2,9\n3,10.0\n4,-1\n"))
    assert stream.spec.classes == ("-1", "9", "10")
    assert table(stream)[2].tolist() == [2, 1, 2, 0]


def test_later_classes_and_categories(tmp_path: Path, check_seek: Any, table: Any) -> None:
    lines = ["a,kind,y"] + [
        f"{i},{'new' if i == 1200 else 'old'},{'c' if i % 700 == 699 else 'ab'[i % 2]}" for i in range(1500)
    ]
    path = csv(tmp_path, "\n".join(lines) + "\n")
    closed = list(dw.stream(path, prefix=600))
    assert [e.row for e in closed if isinstance(e, dw.Rejected)] == [699, 1200, 1399]
    assert "'c' is not one of the 2 known classes" in next(e.reason for e in closed if isinstance(e, dw.Rejected))
    stream = dw.stream(path, prefix=600, classes="open", open="kind")
    assert stream.spec.classes is None
    ids, x, y = table(stream)
    assert y[[0, 1, 699, 1399]].tolist() == [0, 1, 2, 2]
    assert stream.spec.notes["class_names"] == ["a", "b", "c"]
    assert x[ids == 1200, 1].tolist() == [1.0]  # one code for every category that was not in the prefix
    check_seek(lambda: dw.stream(path, prefix=600, classes="open", open="kind"))
    named = dw.stream(path, prefix=600, classes="c,b,a")
    assert table(named)[2][[0, 1, 699]].tolist() == [2, 1, 0]
    assert dw.stream(path, prefix=1500).spec.columns[1].open  # "new" came in the prefix's second half


def test_a_given_spec_closes_columns(tmp_path: Path, table: Any) -> None:
    columns = (dw.Column("color", ("red", "green")), dw.Column("size", missing=False))
    spec = dw.StreamSpec("mine", columns, target_name="y", classes=("no", "yes"))
    path = csv(tmp_path, "size,color,other,y\n1,red,x,no\n2,blue,x,yes\n,red,x,yes\n3,green,x,yes\n4,,x,no\n")
    events = list(dw.open_file(path, spec=spec))
    rejected = [(e.row, e.reason) for e in events if isinstance(e, dw.Rejected)]
    assert rejected == [
        (1, "column 'color': 'blue' is not one of its categories"),
        (2, "column 'size': the value is missing"),
    ]
    np.testing.assert_array_equal(table(events)[1], [[0, 1], [1, 3], [np.nan, 4]])
    with pytest.raises(dw.InputError, match="no column 'weight'"):
        dw.open_file(path, spec=dw.StreamSpec("s", (dw.Column("weight"),), target_name="y", classes=("no", "yes")))


def test_dates_missing_cells_and_empty_columns(tmp_path: Path, table: Any) -> None:
    text = "when,gap,x,y\n2024-01-01T00:00:00,,?,0\n2024-01-02,,NaN,1\nnull,,3,1\n1970-01-01 00:01:00+00:00,,NA,0\n"
    stream = dw.stream(csv(tmp_path, text))
    x = table(stream)[1]
    np.testing.assert_array_equal(x[:, 0], [1704067200, 1704153600, np.nan, 60])
    assert stream.spec.columns[1].categories == ()
    np.testing.assert_array_equal(x[:, 1:], [[np.nan, np.nan], [np.nan, np.nan], [np.nan, 3], [np.nan, np.nan]])


BAD_ROWS = {
    "short": (b"1,2,red", "3 fields instead of 4"),
    "long": (b"1,2,red,no,5", "5 fields instead of 4"),
    "text": (b"1,two,red,no", "column 'c1': 'two' is not a number"),
    "infinite": (b"inf,2,red,no", "column 'c0': the value is infinite"),
    "huge": (b"1e999,2,red,no", "column 'c0': the value is infinite"),
    "underscore": (b"1_000,2,red,no", "column 'c0': '1_000' is not a number"),
    "no label": (b"1,2,red,", "label 'c3': the value is missing"),
    "unknown label": (b"1,2,red,perhaps", "label 'c3': 'perhaps' is not one of the 2 known classes"),
    "open quote": (b'1,2,"red,no', "quotes do not match"),
    "blank": (b"", "the line is blank"),
    "not UTF-8": (b"1,2,r\xe9d,no", "not UTF-8"),
    "binary": (b"1,2,\x00,no", "binary data"),
}


def test_bad_rows_are_rejected_and_change_nothing_else(tmp_path: Path, table: Any, check_seek: Any) -> None:
    rng = np.random.default_rng(0)
    good = [f"{i},{i % 7},{('red', 'blue')[i % 2]},{('no', 'yes')[i % 3 == 0]}".encode() for i in range(6000)]
    kinds = list(BAD_ROWS)
    places = {
        int(k): kinds[j % len(kinds)] for j, k in enumerate(np.sort(rng.choice(np.arange(1, 6000), 600, replace=False)))
    }
    lines, expected = [], {}
    for i, line in enumerate(good):
        if i in places:
            expected[len(lines)] = BAD_ROWS[places[i]][1]
            lines.append(BAD_ROWS[places[i]][0])
        lines.append(line)
    dirty = csv(tmp_path, b"\n".join(lines) + b"\n\n\n", "dirty.csv")  # blank lines at the end are no rows
    clean = csv(tmp_path, b"\n".join(good), "clean.csv")
    classes = "no,yes"  # the prefix has bad labels too
    events = list(dw.stream(dirty, classes=classes))
    rejected = {e.row: e.reason for e in events if isinstance(e, dw.Rejected)}
    assert rejected.keys() == expected.keys()
    assert all(expected[row] in reason for row, reason in rejected.items())
    ids, x, y = table(events)
    _, x2, y2 = table(dw.stream(clean))
    np.testing.assert_array_equal(x, x2)
    np.testing.assert_array_equal(y, y2)
    assert not set(ids) & set(expected)
    assert ids[-1] == len(lines) - 1
    cut, cut2 = (
        [e.x.tobytes() for e in dw.rebatch(dw.stream(p, classes=classes), 100) if isinstance(e, dw.Batch)]
        for p in (dirty, clean)
    )
    assert cut == cut2
    check_seek(lambda: dw.stream(dirty, classes=classes), range(0, 700, 13))


def test_bad_json_lines(tmp_path: Path) -> None:
    lines = [
        '{"a": 1, "y": 0}',
        '{"a": 2}',
        "[1, 2]",
        '{"a": 1, "b": 2, "y": 1}',
        '{"a": [1], "y": 1}',
        "nonsense",
        '{"a": true, "y": 1}',
    ]
    path = csv(tmp_path, "\n".join(lines + ['{"a": 1, "y": 0}'] * 20 + ['{"z": 1}']), "t.jsonl")
    stream = dw.stream(path, label="y", prefix=2, classes="0,1")
    reasons = {e.row: e.reason for e in stream if isinstance(e, dw.Rejected)}
    assert reasons.keys() == {1, 2, 3, 4, 5, 27}
    assert "missing" in reasons[1]
    assert "object" in reasons[2]
    assert reasons[3] == "unknown key 'b'"
    assert "'a'" in reasons[4]
    assert reasons[27] == "unknown key 'z'"


def test_labels_may_be_absent_if_asked(tmp_path: Path, table: Any) -> None:
    path = csv(tmp_path, "a,y\n1,no\n2,\n3,yes\n")
    assert table(dw.stream(path, missing_label="keep"))[2].tolist() == [0, -1, 1]
    numbers = csv(tmp_path, "a,y\n" + "".join(f"1,{k / 3}\n" for k in range(20)) + "2,\n")
    assert np.isnan(table(dw.stream(numbers, missing_label="keep"))[2][-1])


def bad_files(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    packed = gzip.compress(("a,b,y\n" + "1,2,no\n3,4,yes\n" * 200).encode())
    np.savez(tmp_path / "objects.npz", x=np.array([[{}]], dtype=object), y=np.zeros(1))
    np.savez(tmp_path / "lengths.npz", x=np.zeros((3, 2)), y=np.zeros(2))
    np.savez(tmp_path / "keys.npz", data=np.zeros((3, 2)))
    np.save(tmp_path / "bare.npy", np.zeros(3))
    (tmp_path / "bare.npz").write_bytes((tmp_path / "bare.npy").read_bytes())
    (tmp_path / "folder.csv").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes()
    return {
        "missing": (tmp_path / "nothing.csv", "no such file"),
        "directory": (tmp_path / "folder.csv", "directory"),
        "empty": (csv(tmp_path, "", "empty.csv"), "empty"),
        "empty gzip": (csv(tmp_path, gzip.compress(b""), "empty.csv.gz"), "empty"),
        "header only": (csv(tmp_path, "a,b,y\n\n", "header.csv"), "header and no rows"),
        "suffix": (csv(tmp_path, "a,b\n", "t.doc"), "unknown suffix '.doc'"),
        "binary": (csv(tmp_path, noise, "noise.csv"), "not a text table"),
        "binary json": (csv(tmp_path, noise, "noise.jsonl"), "not a text table"),
        "not gzip": (csv(tmp_path, b"a,b\n1,2\n", "plain.csv.gz"), "gzip data is damaged"),
        "torn gzip": (csv(tmp_path, packed[: len(packed) // 2], "torn.csv.gz"), "gzip data is damaged"),
        "twice": (csv(tmp_path, "a,a,y\n1,2,3\n", "twice.csv"), "names column 'a' twice"),
        "one column": (csv(tmp_path, "a\n1\n2\n", "one.csv"), "only one column"),
        "all rows bad": (
            csv(tmp_path, "a,b,y\n1,2\n3,4\n", "narrow.csv"),
            "no readable row (row 0: 2 fields instead of 3)",
        ),
        "no objects": (csv(tmp_path, "1\n2\n", "t.jsonl"), "no JSON object"),
        "objects": (tmp_path / "objects.npz", "object arrays are refused"),
        "lengths": (tmp_path / "lengths.npz", "x has shape [3, 2] and y [2]"),
        "keys": (tmp_path / "keys.npz", "no array 'x'; the arrays are data"),
        "bare": (tmp_path / "bare.npz", "one bare array"),
        "npz": (csv(tmp_path, noise, "noise.npz"), "not a readable npz"),
        "parquet": (csv(tmp_path, noise, "noise.parquet"), "not a readable parquet file"),
    }


def test_what_is_no_stream_says_so_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for case, (path, message) in bad_files(tmp_path).items():
        with pytest.raises(dw.InputError) as caught:
            dw.stream(path)
        text = str(caught.value)
        assert message in text, case
        assert path.name in text, case
        assert "\n" not in text, case


def test_wrong_label_column_lists_the_columns(tmp_path: Path) -> None:
    path = csv(tmp_path, "a,b,y\n1,2,3\n")
    with pytest.raises(dw.InputError, match="no column 'z'; the columns are a, b, y"):
        dw.stream(path, label="z")
    with pytest.raises(dw.InputError, match="no column 7"):
        dw.stream(path, label=7)


def test_gzip_torn_half_way_is_met_half_way(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = "a,y\n" + "".join(f"{v},{k % 2}\n" for k, v in enumerate(rng.normal(size=30_000)))
    packed = gzip.compress(text.encode())
    path = csv(tmp_path, packed[: len(packed) // 2], "half.csv.gz")
    stream, seen = dw.stream(path), 0
    with pytest.raises(dw.InputError, match="damaged or ends early in the block from row"):  # noqa: PT012
        for event in stream:
            seen += len(event)
    assert seen > 10_000


def test_parquet_without_pyarrow_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(dw.InputError, match=r'pip install "driftway\[tabular\]"'):
        dw.stream(csv(tmp_path, b"PAR1", "t.parquet"))


def test_npz_of_images_and_of_unknown_labels(tmp_path: Path, table: Any) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, x=np.ones((4, 2, 3), np.uint8), y=np.array([0, 1, 1, 0]), class_names=np.array(["cat", "dog"]))
    stream = dw.stream(path)
    assert stream.spec.shape == (2, 3)
    assert stream.spec.classes == ("cat", "dog")
    assert table(stream)[1].dtype == np.float64
    np.savez(path, x=np.ones((4, 2)), other=np.array([0, -1, 1, 0]))
    events = list(dw.stream(path, label="other"))
    assert [(e.row, e.reason) for e in events if isinstance(e, dw.Rejected)] == [
        (1, "label 'other': the value is missing")
    ]
    np.savez(path, x=np.ones((4, 2)), y=np.array([-1, 1, 1, -1]))
    assert dw.stream(path).spec.classes == ("-1", "1")
    np.savez(path, x=np.ones((4, 2)), y=np.array(["b", "a", "", "b"]))
    stream = dw.stream(path, missing_label="keep")
    assert stream.spec.classes == ("a", "b")
    assert table(stream)[2].tolist() == [1, 0, -1, 1]
    np.savez(path, x=np.ones((20, 2)), y=np.arange(20) / 7)
    assert dw.stream(path).spec.target == "regression"


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}.csv"
        line = ",".join(["0.12345"] * 8) + ",1\n"
        path.write_text("a,b,c,d,e,f,g,h,y\n" + line.replace("1\n", "0\n", 1) + line * rows)
        stream = dw.stream(path)
        tracemalloc.start()
        count = sum(len(event) for event in stream)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == rows + 1
        return found

    assert peak(40_000) < 1.1 * peak(4000) < 4e6
