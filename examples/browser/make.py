"""Makes what the page needs, in the folder ``made``: two bundles and the digits.

    python make.py [--stream mnist-c] [--learner eata] [--rows 180] [--to made]

bundle/ is the learner that adapts and source/ the same trained network as it is, both as ``dw.export`` writes them for
any device. rows.bin has the digits, a byte for the class and one for each pixel: ``rows`` of them clean, then as many
under each corruption of severity 1, then of severity 2 and so on; rows.json says the rest.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import driftway as dw
import numpy as np

HERE = Path(__file__).resolve().parent
SEVERITIES = range(1, 6)


def packed(x: np.ndarray, y: np.ndarray) -> bytes:
    """Rows [n, d] in 0..1 and their class codes as bytes."""
    return np.column_stack([y, np.rint(x * 255)]).astype(np.uint8).tobytes()


def shifted(name: str, severity: int, rows: int) -> tuple[dw.StreamSpec, bytes]:
    """The stream's spec, and its rows in the order they come: corruption after corruption."""
    stream = dw.stream(name, severity=severity, rows=rows)
    return stream.spec, b"".join(packed(e.x, e.y) for e in stream if isinstance(e, dw.Batch))


def make(stream: str, learner: str, rows: int, to: Path) -> None:
    """Everything, or ``InputError`` and nothing."""
    draft = to.with_name(f".{to.name}")
    shutil.rmtree(draft, ignore_errors=True)
    spec = dw.stream(stream, rows=rows).spec
    dw.export(dw.learner(learner, spec, seed=0), spec, draft / "bundle", name=learner)
    dw.export(dw.learner("source", spec, seed=0), spec, draft / "source", name="source")
    x, y = spec.source.test()
    first = spec.drifts[0]  # of the second corruption: so many rows has each
    parts = [packed(x[:first], y[:first]), *(shifted(stream, s, rows)[1] for s in SEVERITIES)]
    kinds = [kind.replace("_", " ") for kind in spec.notes["kinds"]]
    about = {"stream": stream, "shape": spec.shape, "rows": first, "kinds": kinds, "severities": len(SEVERITIES)}
    (draft / "rows.bin").write_bytes(b"".join(parts))
    (draft / "rows.json").write_text(json.dumps(about) + "\n")
    draft.rename(to)


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes the bundles and the digits of the page.")
    parser.add_argument("--stream", default="digits-c", choices=["digits-c", "mnist-c"])
    parser.add_argument("--learner", default="eata", help="any that can be exported and needs no labels")
    parser.add_argument("--rows", type=int, default=180, help="digits of each corruption and severity, at most")
    parser.add_argument("--to", type=Path, default=HERE / "made")
    options = parser.parse_args()
    try:
        if options.to.exists():
            raise dw.InputError(f"--to {options.to}: there is something already; delete it to make it anew")
        make(options.stream, options.learner, options.rows, options.to)
    except dw.InputError as fault:
        print(f"make.py: error: {fault}", file=sys.stderr)
        return 2
    print(f"made {options.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
