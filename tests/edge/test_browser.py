"""The page of ``examples/browser``: its server, and the bundle in Chromium beside the runner in Python."""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from driftway.adapt.edge.runner import Runner

PAGE = Path(__file__).resolve().parents[2] / "examples" / "browser"
CHECK = Path(__file__).with_name("browser_check.js")
KINDS, SEVERITY, SIZES, STEPS = 15, 5, (16, 1, 4), 24
COLLAPSED = {"every": 2, "window": 32, "share": 2.0}
"""Limits of the guard under which every window counts as a collapse."""
SPOILT = {"spoilt-graph": "adapt.onnx", "spoilt-manifest": "bundle.json"}
PLAN = {
    "kinds": KINDS,
    "limits": COLLAPSED,
    "severity": SEVERITY,
    "sizes": SIZES,
    "spoilt": list(SPOILT),
    "steps": STEPS,
}


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"browser_{name}", PAGE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path) -> Path:
    """A copy of the page, without what a person has made there."""
    ignored = shutil.ignore_patterns("node_modules", "made", "__pycache__")
    return Path(shutil.copytree(PAGE, tmp_path / "page", ignore=ignored))


@pytest.fixture(name="installed")
def installed_fixture(folder: Path) -> Path:
    """The copy with ONNX Runtime Web in it: the one that lies there, or the registry's."""
    if (PAGE / "node_modules").exists():
        (folder / "node_modules").symlink_to(PAGE / "node_modules", target_is_directory=True)
        return folder
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    try:
        subprocess.run(["npm", "ci"], cwd=folder, check=True, capture_output=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip("npm ci took too long")
    except subprocess.CalledProcessError as fault:
        told = fault.stderr.decode(errors="replace")
        assert "EUSAGE" not in told, told  # the two files do not agree
        assert "EINTEGRITY" not in told, told
        pytest.skip(f"npm ci did not get its packages: {told[-200:]}")
    return folder


class Serving:
    """The page's own server in a thread, which also takes what a page says."""

    def __init__(self, folder: Path) -> None:
        module = script("serve")
        self.said: queue.Queue[dict[str, Any]] = queue.Queue()

        class Handler(module.Handler):  # type: ignore[misc, name-defined]
            def do_POST(handler) -> None:
                self.said.put(json.loads(handler.rfile.read(int(handler.headers["Content-Length"]))))
                handler.send_response(204)
                handler.end_headers()

        self.server = module.server(folder, 0, Handler)
        self.address = f"http://localhost:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self) -> Serving:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture(name="chromium")
def chromium_fixture(tmp_path: Path) -> Iterator[Any]:
    """Opens an address in Chromium, to which no other machine has a name."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed (Debian's package of that name)")
    running = []

    def show(address: str) -> None:
        flags = ["--headless=new", "--no-sandbox", "--no-zygote", "--disable-gpu", "--disable-dev-shm-usage"]
        flags += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost"]
        with (tmp_path / "chromium.log").open("wb") as log:
            running.append(subprocess.Popen([program, *flags, address], stderr=log, stdout=log, start_new_session=True))

    yield show
    for process in running:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with suppress(ProcessLookupError):  # what is left of its family
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Copies:
    """Both copies in Python, on the digits that the page has."""

    def __init__(self, made: Path) -> None:
        self.source, self.runner = Runner(made / "source"), Runner(made / "bundle")
        self.rows = json.loads((made / "rows.json").read_text())["rows"]
        self.digits = np.frombuffer((made / "rows.bin").read_bytes(), np.uint8).reshape(-1, 65)

    def step(self, kind: int, first: int, n: int) -> tuple[Any, Any, Any]:
        """Scores of the source, scores before the step, class codes."""
        block = (1 + (SEVERITY - 1) * KINDS + kind) * self.rows
        digits = self.digits[block + np.arange(first, first + n) % self.rows]
        x = digits[:, 1:] / 255
        return self.source.predict(x), self.runner.adapt(x), digits[:, 0]

    def walk(self, first: int) -> tuple[list[Any], dict[str, int]]:
        """Scores of some steps, and what has been counted after them."""
        scores = [self.step(i % KINDS, 16 * i, SIZES[i % len(SIZES)])[:2] for i in range(first, first + STEPS)]
        return scores, {name: self.runner.counts[name] for name in ("steps", "resets", "rollbacks")}


def played(made: Path) -> list[str]:
    """What the page must show after four steps of 16 rows under the fourth corruption."""
    copies, right = Copies(made), []
    for i in range(4):
        source, adapting, y = copies.step(3, 16 * i, 16)
        right.append([source.argmax(1) == y, adapting.argmax(1) == y])
    return [f"{100 * share:.0f} %" for share in np.mean(right, (0, 2))] + ["64", "defocus blur 5"]


def test_the_bundle_adapts_in_chromium_as_it_does_in_python(
    installed: Path, chromium: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = installed / "made"
    monkeypatch.setattr(
        "driftway.adapt.edge.weights.WORTH", 1
    )  # a file of its own for shared weights, small as they are
    script("make").make("digits-c", "eata", 50, made)
    assert (made / "bundle" / "weights.bin").exists()
    for name, file in SPOILT.items():
        spoilt = shutil.copytree(made / "bundle", installed / name) / file
        spoilt.write_bytes(spoilt.read_bytes().replace(b"1", b"2", 1))
    shutil.copy(CHECK, installed / "check.js")
    (installed / "plan.json").write_text(json.dumps(PLAN))
    (installed / "check.html").write_text('<!doctype html><body><script type="module" src="check.js"></script>')
    with Serving(installed) as serving:
        chromium(f"{serving.address}/check.html")
        said = serving.said.get(timeout=120)
    assert "fault" not in said, said["fault"]

    copies = Copies(made)
    first, before = copies.walk(0)
    copies.runner.about["guard"].update(COLLAPSED)
    second, after = copies.walk(STEPS)
    expected = {name: np.concatenate(scores) for name, scores in zip(("trained", "adapting"), zip(*first, *second))}
    for name, scores in expected.items():
        found = np.array(said[name], np.float32)
        np.testing.assert_allclose(found, scores, atol=1e-4)
        np.testing.assert_array_equal(found.argmax(1), scores.argmax(1))
    assert np.abs(expected["adapting"] - expected["trained"]).max() > 0.1
    assert said["counts"] == [before, after]
    assert after["steps"] > before["steps"] > 0
    assert after["rollbacks"] > before["rollbacks"]
    assert (said["kept"], said["counted"]) == (True, 1)
    assert [words.split()[-1] for words in said["refused"]] == ["altered", "altered"]

    assert said["played"] == played(made)
    assert said["begun"] == ["–", "0", "none yet"]
    drawn = np.array(said["drawn"]).reshape(8, 8)
    assert (drawn[:, 3:5] > 40).all()
    assert not drawn[:, [0, 1, 6, 7]].any()


def test_files_are_served_with_the_types_that_browsers_want(folder: Path) -> None:
    for name in ("a.mjs", "a.wasm", "a.onnx"):
        (folder / name).touch()
    expected = {
        "": "text/html; charset=utf-8",
        "page.js": "text/javascript; charset=utf-8",
        "a.mjs": "text/javascript; charset=utf-8",
        "a.wasm": "application/wasm",
        "a.onnx": "application/octet-stream",
    }
    with Serving(folder) as serving:
        for name, kind in expected.items():
            with urllib.request.urlopen(f"{serving.address}/{name}") as answer:
                assert answer.headers["Content-Type"] == kind
                assert answer.headers["Content-Security-Policy"].startswith("default-src 'self';")


def test_the_server_says_what_is_missing_and_where_the_page_is(folder: Path) -> None:
    argv = [sys.executable, str(folder / "serve.py"), "--port", "0"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("serve.py: error: ONNX Runtime Web is not installed; run: npm ci")
    assert done.stderr.count("\n") == 1
    runtime = folder / script("serve").RUNTIME
    runtime.parent.mkdir(parents=True)
    runtime.touch()
    (folder / "made").mkdir()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        with urllib.request.urlopen(address) as answer:
            assert b"<h1>" in answer.read()
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(20) == 130
        finally:
            process.kill()


def test_the_runtime_is_pinned_and_no_registry_is_named() -> None:
    package, lock = (json.loads((PAGE / name).read_text()) for name in ("package.json", "package-lock.json"))
    (version,) = package["dependencies"].values()
    assert lock["packages"]["node_modules/onnxruntime-web"]["version"] == version
    assert not any("resolved" in entry for entry in lock["packages"].values())
    assert all(entry["integrity"].startswith("sha512-") for name, entry in lock["packages"].items() if name)
