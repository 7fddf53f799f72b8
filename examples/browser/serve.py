"""Serves the page on this machine: ``npm ci`` once, then ``python serve.py``. Standard library only.

What the page needs and is not there yet (``made``) is made first, by ``make.py``, for which Driftway must be installed.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RUNTIME = Path("node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs")
POLICY = "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' data:"
"""What the page may load: files of this server and nothing else."""


class Handler(SimpleHTTPRequestHandler):
    """Files of one folder, with the types that browsers insist on."""

    extensions_map = {  # noqa: RUF012
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".mjs": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".wasm": "application/wasm",
        "": "application/octet-stream",
    }

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing for each file; ``log_error`` would come here too, and the browser tells of what is missing."""


def server(folder: Path, port: int, handler: type[Handler] = Handler) -> ThreadingHTTPServer:
    """Serves the folder to this machine alone. port: 0 for any that is free."""
    return ThreadingHTTPServer(("127.0.0.1", port), partial(handler, directory=str(folder)))


def main() -> int:
    parser = argparse.ArgumentParser(description="Serves the page on this machine.")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have what they start in the background ignore it
    try:
        if not (HERE / RUNTIME).exists():
            raise OSError(f"ONNX Runtime Web is not installed; run: npm ci --prefix {HERE}")
        if not (HERE / "made").exists():
            print("making the bundles and the digits, once: about half a minute", flush=True)
            if subprocess.run([sys.executable, HERE / "make.py"], check=False).returncode:
                return 2
        with server(HERE, options.port) as serving:
            print(f"http://localhost:{serving.server_port}/  (Ctrl-C ends it)", flush=True)
            serving.serve_forever()
    except KeyboardInterrupt:
        return 130
    except OSError as fault:
        print(f"serve.py: error: {fault}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
