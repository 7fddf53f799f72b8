"""Killed at any moment and resumed, through the command line; and memory that stays flat however long a run is.

One child process runs the whole command once, undisturbed. Then it forks: the copies, with everything compiled
already, run the same command in another folder, are killed with SIGKILL after a random share of the time the whole run
took, and resumed, until one comes through. Both folders must hold the same bytes, but for what a clock said.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from driftway.adapt.runs import CLOCKS

KILL = """
import functools, json, os, shutil, signal, sys, time
import numpy as np
from driftway.adapt import cli, runs

whole, killed, seed, *command = sys.argv[1:]
runs.Checkpointer = functools.partial(runs.Checkpointer, every=150)
assert cli.main([*command, "--out", whole + "-first"]) == 0  # compiles
started = time.perf_counter()
assert cli.main([*command, "--out", whole]) == 0
duration = time.perf_counter() - started

rng = np.random.default_rng(int(seed))
kills = []
while True:
    child = os.fork()
    if not child:
        os._exit(cli.main([*command, "--out", killed, "--resume"]))
    ends = time.perf_counter() + duration * rng.uniform(0.05, 0.6)
    done = (0, 0)
    while not done[0] and (len(kills) == 20 or time.perf_counter() < ends):
        done = os.waitpid(child, os.WNOHANG)
        time.sleep(0.001)
    if done[0] and not kills and os.waitstatus_to_exitcode(done[1]) == 0:  # faster than who was to kill it
        shutil.rmtree(killed)
        continue
    if done[0]:
        break
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    folder = killed + "/checkpoint"
    saved = [int(name[9:]) for name in os.listdir(folder) if name[0] != "."] if os.path.isdir(folder) else []
    kills.append(max(saved, default=0))
assert os.waitstatus_to_exitcode(done[1]) == 0, done
print(json.dumps(kills), file=sys.stderr)
"""

RUNS = {
    "logistic": ["--learner", "logistic", "--set", "rate=0.2"],
    "logistic, late labels": ["--learner", "logistic", "--delay", "40"],
    "logistic, blocks": ["--learner", "logistic", "--batch", "16"],
    "frozen": ["--learner", "frozen:majority", "--set", "after=700"],
    "hoeffding-tree": ["--learner", "hoeffding-tree", "--set", "adaptive=true", "--set", "grace=50"],
    "driftmoe": ["--learner", "driftmoe"],
    "acu": ["--learner", "acu", "--set", "width=32", "--batch", "16"],
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 rows with a drift, a nominal column, missing values, and now and then a row that is none."""
    rng = np.random.default_rng(11)
    a, b = rng.normal(size=3000).round(6), rng.normal(size=3000).round(6)
    colour = rng.choice(["red", "green", "blue"], 3000)
    late = np.arange(3000) > 1400
    y = np.where(np.where(late, b, a) + (colour == "red") > 0.3, "yes", "no")
    lines = ["a,b,colour,y"]
    for i in range(3000):
        cell = "" if i % 53 == 0 else f"{b[i]}"
        lines.append(f"{a[i]},{cell},{colour[i]},{y[i]}")
        if i > 1000 and i % 211 == 0:
            lines += [f"{a[i]},spam,{colour[i]},{y[i]}", "1,2"]
    path = tmp_path_factory.mktemp("killed") / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def in_child(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the code. One thread for networks, since a copy made by fork would wait for OpenMP's threads for ever."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(line, capture_output=True, text=True, timeout=230, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.parametrize("flags", RUNS.values(), ids=list(RUNS))
def test_killed_and_resumed_equals_undisturbed(table: Path, tmp_path: Path, flags: list[str]) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    seed = str(len(str(flags)))
    done = in_child(KILL, str(whole), str(killed), seed, "run", str(table), "--label", "y", "--json", *flags)
    kills = json.loads(done.stderr.splitlines()[-1])
    assert kills, "it was never killed"
    print("newest checkpoint at each kill:", kills)
    for name in ("records.csv", "quarantine.jsonl", "config.toml"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), (name, kills)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, killed)]
    one, other = ({k: v for k, v in s.items() if k not in CLOCKS} for s in summaries)
    assert one == other
    assert one["status"] == "done"
    assert one["examples"] == 3000
    assert one["quarantined"] == 20


EVALUATED = {
    "logistic": ["--learner", "logistic", "--evaluate-every", "1", "--batch", "10"],
    "logistic, row by row": ["--learner", "logistic", "--evaluate-every", "3", "--set", "epochs=3"],
    "er": ["--learner", "er", "--evaluate-every", "1", "--batch", "10", "--set", "model=mlp:16"],
}


@pytest.mark.parametrize("flags", EVALUATED.values(), ids=list(EVALUATED))
def test_killed_and_resumed_under_evaluation(tmp_path: Path, flags: list[str]) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = in_child(KILL, str(whole), str(killed), "7", "run", "split-digits", "--json", *flags)
    kills = json.loads(done.stderr.splitlines()[-1])
    assert kills, "it was never killed"
    for name in ("records.csv", "continual.csv", "config.toml"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), (name, kills)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, killed)]
    one, other = ({k: v for k, v in s.items() if k not in CLOCKS} for s in summaries)
    assert one == other
    assert one["continual"]["experiences"] == 5


def test_killed_and_resumed_beside_its_source(tmp_path: Path) -> None:
    """Shadow answers, snapshots and rollbacks are part of a checkpoint."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = ("model=convnet:8-8", "epochs=10", "lr=0.02", "setting=correlated", "rows=400")
    flags = [word for setting in settings for word in ("--set", setting)]
    command = ["run", "digits-c", "--learner", "tent", "--batch", "8", "--json", *flags]
    done = in_child(KILL, str(whole), str(killed), "5", *command)
    kills = json.loads(done.stderr.splitlines()[-1])
    assert kills, "it was never killed"
    for name in ("records.csv", "config.toml"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), (name, kills)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, killed)]
    one, other = ({k: v for k, v in s.items() if k not in CLOCKS} for s in summaries)
    assert one == other
    assert one["source"]["rollbacks"] > 0


MEMORY = """
import sys
import numpy as np, psutil
import driftway as dw
from driftway.adapt.loop import Loop

name, delayed, *settings = sys.argv[1:]
spec = dw.StreamSpec("endless", tuple(dw.Column(c) for c in "abcd"), classes=("n", "y"))
learner = dw.learner(name, spec, **dict(s.split("=") for s in settings))
loop = Loop(learner, evaluators=[dw.Prequential(spec)], guard=dw.Guard(), row_by_row=True, pending=500)

class Rows:
    def __init__(self, start, stop):
        self.spec, self.blocks = spec, range(start, stop)

    def __iter__(self):
        for block in self.blocks:
            rng = np.random.default_rng(block)
            x, ids = rng.normal(size=(200, 4)), np.arange(block * 200, block * 200 + 200)
            y = (x[:, 0] + rng.normal(size=200) > (block % 40 > 20)).astype(np.int64)
            if delayed == "late":
                yield dw.Batch(ids, x, 0.0)
                yield dw.Labels(ids[:-1], y[:-1], 0.0)  # one label of each block never comes
            else:
                yield dw.Batch(ids, x, 0.0, y)

    def cursor(self):
        return {}

def resident(start, stop):
    for record in loop.steps(Rows(start, stop)):
        pass
    return psutil.Process().memory_info().rss

warm = resident(0, 60)
print(warm, resident(60, 660))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("majority", "now"),
        ("logistic", "now"),
        ("logistic", "late"),
        ("frozen:logistic", "now"),
        ("hoeffding-tree", "now", "grace=50", "max_mib=0.05"),
    ],
    ids=" ".join,
)
def test_memory_is_flat_over_ten_times_as_many_events(arguments: tuple[str, ...]) -> None:
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("resident memory is only read where /proc tells it")
    warm, later = map(int, in_child(MEMORY, *arguments).stdout.split())
    assert later < 1.01 * warm, f"{warm / 1e6:.1f} MB grew to {later / 1e6:.1f} MB"
