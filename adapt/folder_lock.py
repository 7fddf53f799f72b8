"""A lock on the folder of a run: whoever writes to it holds it, and a second one is refused in one line.

The lock is the kernel's (``flock`` on the file ``.lock``), not the file: it ends with the process that holds it,
however that ends, so a file that a killed process left behind keeps nobody out. What stands in the file is for
people: who holds it. Copies of a process (``fork``) share its lock until the last of them has ended.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path

from ..streams import InputError

LOCK = ".lock"


class FolderLock:
    """The lock on a folder that exists, held from now until ``release`` or the end of the process.

    doing: what the holder does there, for whoever is refused. Raises ``InputError`` where another process, or another
    part of this one, holds it.
    """

    def __init__(self, folder: Path, doing: str) -> None:
        self._file = (folder / LOCK).open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = " ".join(self._file.read(500).split()) or "another process"
            self._file.close()
            raise InputError(f"{folder} is in use by {holder}: try again when that has ended") from None
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(0)
        started = time.strftime("%H:%M:%S", time.localtime())
        self._file.write(f"process {os.getpid()} ({doing}, since {started})\n")
        self._file.flush()

    def release(self) -> None:
        """Let others in. Once is enough; more often does nothing."""
        if not self._file.closed:
            self._file.truncate(0)
            self._file.close()


def doing(command: str) -> str:
    """What a process does in a folder, in words: the command, or the program it was started as."""
    return command or Path(sys.argv[0]).name or "a program"
