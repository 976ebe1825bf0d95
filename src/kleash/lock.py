"""One writer of an output at a time: a second process is refused while the first one lives.

The lock is one of the system (flock) on a hidden file, so that it is gone with its process, however that ends. Where
the file system has none, the process that the file names is looked for instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
from pathlib import Path
from weakref import WeakValueDictionary, finalize

from kleash.errors import InputError

_CONTENT = re.compile(rb"(\d+) (\S+) (\d+\.\d+)\n")
"""Process, host, seconds."""


class Lock:
    """The right to write an output, until it is released, and no longer than the object and its process live."""

    def __init__(self, file: Path, handle: int) -> None:
        """Take over an open file; use `lock`."""
        self._file, self._handle = file, handle
        self._close = finalize(self, os.close, handle)
        last = _CONTENT.match(os.pread(handle, 1000, 0))
        self.seconds = float(last[3]) if last else 0.0
        """For how long the process that had the lock before, and was interrupted, had been writing."""
        os.ftruncate(handle, 0)
        self.note(self.seconds)

    @property
    def released(self) -> bool:
        """Whether others may write."""
        return not self._close.alive

    def note(self, seconds: float) -> None:
        """Write for how long this process has been writing."""
        if not self.released:
            os.pwrite(self._handle, f"{os.getpid()} {socket.gethostname()} {seconds:015.3f}\n".encode(), 0)
            self.seconds = seconds

    def release(self) -> None:
        """Let others write; nothing was interrupted."""
        if not self.released:
            with contextlib.suppress(OSError):
                self._file.unlink()
            self._close()


_LOCKS: WeakValueDictionary[Path, Lock] = WeakValueDictionary()
"""Those of this process, which may open its own output again."""


def lock(file: Path, out: Path) -> Lock:
    """Take the right to write an output.

    Args:
        file: the hidden file, in a folder that exists.
        out: the output, for the message.

    Raises:
        InputError: another process writes it; names the process.
        OSError: nothing can be written there.
    """
    file = file.absolute()
    if (writer := _LOCKS.get(file)) is None or writer.released:
        writer = _LOCKS[file] = Lock(file, _open(file, out))
    return writer


def is_locked(file: Path) -> bool:
    """Whether a living process has the right to write an output."""
    try:
        handle = os.open(file, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return _writer_lives(handle)
    finally:
        os.close(handle)


def _open(file: Path, out: Path) -> int:
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _refuse(handle, out, "wait for it, or choose another --out")
        except OSError:  # a file system without locks
            if _writer_lives(handle):
                _refuse(handle, out, f"wait for it, choose another --out, or delete {file} if that process is another")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), file.stat()):
                return handle
        os.close(handle)  # its owner finished, and removed the file after it was opened here


def _refuse(handle: int, out: Path, remedy: str) -> None:
    writer = _CONTENT.match(os.pread(handle, 1000, 0))
    os.close(handle)
    who = f"process {int(writer[1])} on {writer[2].decode(errors='replace')}" if writer else "another process"
    raise InputError(f"{out} is being written by {who}; {remedy}")


def _writer_lives(handle: int) -> bool:
    """Whether the process that the file names runs on this host; of another host's nothing is known."""
    writer = _CONTENT.match(os.pread(handle, 1000, 0))
    if writer is None or writer[2].decode(errors="replace") != socket.gethostname():
        return False
    return int(writer[1]) != os.getpid() and process_runs(int(writer[1]))


def process_runs(process: int) -> bool:
    """Whether a process runs on this host."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
