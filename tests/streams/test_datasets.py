"""Fetching against a local server, and the staged data sets themselves where they are there."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.streams import DATASETS, Dataset, fetch, folders, locate
from driftway.streams.convert import content_digest
from driftway.streams.datasets import Published


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which it is served."""
    folder = tmp_path / "site"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def published(site: tuple[Path, str], name: str, **files: bytes) -> Dataset:
    """A data set of the table whose sources are small files on the local site."""
    folder, url = site
    for file, content in files.items():
        (folder / file).write_bytes(content)
    sources = tuple(Published(url + f, hashlib.sha256(c).hexdigest()) for f, c in files.items())
    return dataclasses.replace(DATASETS[name], sources=sources, content="?")


def test_fetch_downloads_checks_and_converts(
    site: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = published(site, "sea", points=b"1.5,2,3\n4,5,6\n", labels=b"0\n1\n")
    with pytest.raises(dw.InputError, match="converted content has sha256 ") as caught:
        fetch(dataset, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    made = str(caught.value).split("sha256 ")[1].split(",")[0]
    calls: list[tuple[str, int, int | None]] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DRIFTWAY_DATA", raising=False)
    path = fetch(dataclasses.replace(dataset, content=made), progress=lambda *call: calls.append(call))
    assert path == tmp_path / "cache" / "driftway" / "sea.npz"
    assert locate(dataset) == path
    assert calls == [("points", 14, 14), ("labels", 4, 4)]
    with np.load(path) as arrays:
        np.testing.assert_array_equal(arrays["x"], np.array([[1.5, 2, 3], [4, 5, 6]], np.float32))
        assert arrays["y"].tolist() == [0, 1]
    assert [p.name for p in path.parent.iterdir()] == ["sea.npz"]


def test_what_can_go_wrong_is_one_line(site: tuple[Path, str], tmp_path: Path) -> None:
    dataset = published(site, "etth1", ETTh1=b"a,b\n1,2\n")
    source = dataset.sources[0]
    for changed, message in [
        (Published(source.url, "0" * 64), "8 bytes with sha256"),
        (Published(source.url + "x", source.sha256), "the server answers 404"),
        (Published("http://127.0.0.1:1/x", source.sha256), "cannot be reached"),
        (Published(Path("/x").as_uri(), source.sha256), "only http and https"),
    ]:
        with pytest.raises(dw.InputError, match=message) as caught:
            fetch(dataclasses.replace(dataset, sources=(changed,)), tmp_path / "out")
        assert "\n" not in str(caught.value)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(dw.InputError, match="cannot write"):
        fetch(dataset, tmp_path / "file" / "folder")


def test_conversions_of_packed_files(site: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = site
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("allyears2k_headers.csv", "Tail,y\nN\xe4,YES\n".encode("latin-1"))
        archive.writestr("spam/spam.data", "0 1 0\n1 1 0\n0 0 0\n")
        archive.writestr("spam/spam.labels", "1\n0\n0\n")
    packed = (folder / "a.zip").read_bytes()
    plain = b"a , b \r\n1 , 2 \r\n"
    for name, content, expected in [
        ("airlines", packed, "Tail,y\nN\xe4,YES\n".encode()),
        ("bike-sharing", plain, b"a,b\n1,2\n"),
        ("etth1", plain, plain),
        ("kdd99", gzip.compress(plain), plain),
    ]:
        dataset = dataclasses.replace(
            published(site, name, source=content), content=hashlib.sha256(expected).hexdigest()
        )
        assert gzip.decompress(fetch(dataset, tmp_path / name).read_bytes()) == expected
    with pytest.raises(dw.InputError, match="converted content") as caught:
        fetch(published(site, "spam", source=packed), tmp_path / "spam")
    digest = str(caught.value).split("sha256 ")[1].split(",")[0]
    dataset = dataclasses.replace(published(site, "spam", source=packed), content=digest)
    with np.load(fetch(dataset, tmp_path / "spam")) as arrays:
        assert arrays["indices"].tolist() == [1, 0, 1]
        assert arrays["indptr"].tolist() == [0, 1, 3, 3]
        assert arrays["shape"].tolist() == [3, 3]


def test_missing_data_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTWAY_DATA", str(tmp_path / "here"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    assert folders() == [tmp_path / "here", tmp_path / "there" / "driftway"]
    for name, entry in dw.STREAMS.items():
        if entry.dataset is None:
            continue
        with pytest.raises(dw.InputError) as caught:
            dw.stream(name)
        wanted = "mnist" if name == "mnist-fashion" else entry.dataset
        assert str(caught.value).endswith(f"get it with: driftway data {wanted} --fetch")
        assert "\n" not in str(caught.value)


ROWS = {
    "electricity": (45_312, 8, 2, 0),
    "covertype": (20_000, 54, 7, 1),
    "airlines": (43_978, 12, 2, 21),
    "gas-sensors": (6697, 128, 6, 7),
    "outdoor": (4000, 21, 40, 0),
    "keystroke": (1600, 10, 4, 7),
    "sea": (50_000, 3, 2, 3),
    "spam": (9324, 100, 2, 0),
    "kdd99": (494_021, 41, 23, 0),
    "employment": (277_677, 16, 2, 3),
    "interchanging-rbf": (200_000, 2, 15, 66),
    "moving-squares": (200_000, 2, 4, 0),
    "chessboard": (200_000, 2, 8, 0),
    "bike-sharing": (17_379, 12, None, 0),
    "etth1": (17_420, 9, None, 0),
    "movielens": (100_000, 8, 2, 0),
    "criteo": (7200, 39, 2, 0),
    "avazu": (8087, 21, 2, 0),
    "frappe": (86_582, 10, 2, 0),
    "diginetica": (24_775, 4, 2, 0),
    "open-bandit": (10_000, 7, 2, 0),
    "text-cl": (2096, 128, 32, 2),
}
SOME_CLASSES = {"kdd99", "text-cl"}
"""Streams whose first rows, or whose rows at all, do not have every class."""
BESIDE = {"movielens-users", "movielens-items", "open-bandit-bts"}
"""Files that streams of another name read beside their own."""


def test_every_data_set_is_in_the_table() -> None:
    assert ROWS.keys() | BESIDE | {"mnist", "fashion", "cifar10"} == DATASETS.keys()
    for dataset in DATASETS.values():
        assert dataset.sources or dataset.holds
        assert all(len(s.sha256) == 64 and s.url.startswith("https://") for s in dataset.sources)
        assert dataset.licence
        assert dataset.convert in dataset.how


@pytest.mark.parametrize("name", ROWS)
def test_staged_streams(name: str, data: Path) -> None:
    if not (data / DATASETS[name].file).exists():
        pytest.skip(f"{DATASETS[name].file} is not in DRIFTWAY_DATA")
    stream = dw.stream(name)
    rows, columns, classes, drifts = ROWS[name]
    spec = stream.spec
    assert (spec.name, spec.length, spec.n_features, spec.n_classes, len(spec.drifts)) == (
        name,
        rows,
        columns,
        classes,
        drifts,
    )
    assert len({c.name for c in spec.columns}) == columns
    seen, marks, labels = 0, [], set()
    for event in dw.take(stream, 60_000):
        if isinstance(event, dw.Boundary):
            marks.append(seen)
        else:
            assert isinstance(event, dw.Batch), event
            seen += len(event)
            labels.update(event.y.tolist() if classes else [])
    assert seen == min(rows, 60_000)
    assert marks == [d for d in spec.drifts if d < 60_000]
    assert not classes or len(labels) == (len(labels) if name in SOME_CLASSES else classes) >= 2


def test_staged_values(data: Path, table: Any) -> None:
    """Spot checks against the publishers' own text."""
    wanted = (
        "elec2.npz",
        "etth1.csv.gz",
        "bike_sharing_hour.csv.gz",
        "airlines_1987_2008.csv.gz",
        "kdd99_10pct.csv.gz",
    )
    if not all((data / file).exists() for file in wanted):
        pytest.skip("some of the staged data sets are not in DRIFTWAY_DATA")
    _, x, y = table(dw.stream("etth1"))
    assert np.isnan(x[0, 6])
    np.testing.assert_array_equal(x[1:, 6], y[:-1])
    assert x[:3, 7:].tolist() == [[0, 7], [1, 7], [2, 7]]
    assert abs(np.abs(np.diff(y)).mean() - 0.614) < 5e-4
    _, x, y = table(dw.stream("bike-sharing"))
    assert abs(np.abs(np.diff(y)).mean() - 64.9) < 0.05
    stream = dw.stream("airlines")
    _, x, y = table(stream)
    assert y.sum() == 24_441
    first = dict(zip([c.name for c in stream.spec.columns], x[0], strict=True))
    assert (first["Year"], first["CRSDepTime"], first["Distance"]) == (1987, 730, 447)
    origin = next(c for c in stream.spec.columns if c.name == "Origin")
    assert origin.categories is not None
    assert origin.categories[int(first["Origin"])] == "SAN"
    stream = dw.stream("kdd99")
    assert stream.spec.classes is not None
    assert stream.spec.classes[next(iter(stream)).y[0]] == "normal"
    assert abs(table(dw.stream("electricity"))[2].mean() - 19_237 / 45_312) < 1e-9


def test_digest_ignores_how_content_is_packed(tmp_path: Path) -> None:
    for level in (1, 9):
        (tmp_path / f"{level}.csv.gz").write_bytes(gzip.compress(b"a,b\n" * 100, level))
    assert content_digest(tmp_path / "1.csv.gz") == content_digest(tmp_path / "9.csv.gz")
    np.savez(tmp_path / "a.npz", x=np.zeros(5), y=np.ones(2))
    np.savez_compressed(tmp_path / "b.npz", y=np.ones(2), x=np.zeros(5))
    np.savez(tmp_path / "c.npz", x=np.zeros(5), y=np.ones(2, np.float32))
    digests = [content_digest(tmp_path / f"{n}.npz") for n in "abc"]
    assert digests[0] == digests[1] != digests[2]
