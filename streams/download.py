"""Getting a data set from its publisher: download, check, convert, check again, and only then put it in place."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from . import convert
from .datasets import Dataset, Published, cache_folder
from .spec import InputError

Progress = Callable[[str, int, int | None], None]
"""Called with the file's name, the bytes so far, and the bytes in all (None where the server does not say)."""

CHUNK = 1 << 16
TIMEOUT = 60.0


def fetch(dataset: Dataset, folder: Path | None = None, progress: Progress | None = None) -> Path:
    """Download and convert a data set into ``folder`` (default: the cache folder); returns the file.

    Every download must have the sha256 of the table, and so must the content of the result where the table has one.
    The file appears under its name only when it is whole. Images come by way of torchvision, which shows its own
    progress and checks the md5 that it knows. Raises InputError in one line for a failing connection, a refused
    request, a wrong digest or a folder that cannot be written.
    """
    folder = cache_folder() if folder is None else folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as work:
            made = Path(work) / f"made-{dataset.file}"
            if dataset.sources:
                _convert(dataset, Path(work), made, progress)
            else:
                from .published_images import save_images

                save_images(dataset, Path(work), made)
            found = convert.content_digest(made)
            if dataset.content and found != dataset.content:
                raise InputError(f"{dataset.name}: the converted content has sha256 {found}, not {dataset.content}")
            target = folder / dataset.file
            os.replace(made, target)
            return target
    except OSError as error:
        raise InputError(f"{dataset.name}: cannot write to {folder} ({error.strerror or error})") from None


def _convert(dataset: Dataset, work: Path, made: Path, progress: Progress | None) -> None:
    """Get the sources and make one file of them."""
    parts = [work / f"{k}-{source.url.rsplit('/', 1)[-1]}" for k, source in enumerate(dataset.sources)]
    for source, part in zip(dataset.sources, parts, strict=True):
        download(source, part, progress)
    getattr(convert, dataset.convert)(parts, made)


def download(source: Published, path: Path, progress: Progress | None = None) -> None:
    """One file, checked against its sha256. Raises InputError in one line."""
    import urllib.error
    import urllib.request

    name = source.url.rsplit("/", 1)[-1]
    if not source.url.startswith(("https://", "http://")):
        raise InputError(f"{source.url}: only http and https addresses are fetched")
    digest, done = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(source.url, timeout=TIMEOUT) as answer, open(path, "wb") as file:
            length = answer.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(name, done, total)
    except urllib.error.HTTPError as error:
        with error:
            raise InputError(f"{source.url}: the server answers {error.code} {error.reason}") from None
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise InputError(f"{source.url}: cannot be reached ({getattr(error, 'reason', error)})") from None
    if digest.hexdigest() != source.sha256:
        raise InputError(f"{source.url}: {done} bytes with sha256 {digest.hexdigest()}, not {source.sha256}")
