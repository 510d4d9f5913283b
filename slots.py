"""A slot of a keeper: the files through which one task gets in and its output out.

Reason for this file beside shells.py: a keeper has two of them, so that it can be given
a task while another runs; here is what each has for itself.

Rules. Knows nothing of processes. `make`, `take_output` and `close` are to be called
aside, and `load` too unless the slot `is_quick`.

Invariants:
1. An output file is used again only while it is small; a large one is the caller's.
   It is empty before the next task begins: cut at its end, or by its own shell.
2. What a script has to do first it is told again until one has begun.
"""

import os
from typing import Dict, List, Optional, Tuple

from taskscript import SLOTS, closing, descriptor, quote

FEED_BYTES_KEPT = 64 * 1024  # a feed up to this size is overwritten, not cut
GLANCE_BYTES = 4096  # of an output: so much is taken without another thread
NAMES = ("out", "err")


def memory_file() -> int:
    """Open a file that is on no disk and has a path; -1 if the system has none."""
    try:
        fd: int = os.memfd_create("feed")  # novm
        os.fchmod(fd, 0o600)
    except (AttributeError, OSError):
        return -1
    if os.path.exists(f"/proc/{os.getpid()}/fd/{fd}"):
        return fd
    os.close(fd)
    return -1


def new_file(path: str) -> int:
    """Make a file that wasn't there, for this user alone."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)


def remove(path: str) -> None:
    """Remove a file, if it can be."""
    try:
        os.unlink(path)
    except OSError:
        pass


class Slot:
    """One of a keeper's."""

    def __init__(self, base: str, number: int) -> None:
        """Know how the names of its files begin."""
        self.is_busy = False  # from load to the end of taking what its task printed
        self.is_last = False  # it is not to be used again
        self.is_quick = False  # to load it waits for no disk
        self.is_cut = True  # nothing of a former task is in the outputs
        self.word = b""  # how the keeper is to take what was loaded
        self._base, self._number = base, number
        self._feed = f"{base}.{number}.feed"
        self._fed = 0  # bytes in the feed
        self._reopen = b""  # what the next script has to do first
        self._paths = {name: f"{base}.{name}{number}" for name in NAMES}
        self._fds: Dict[str, int] = {}

    def make(self) -> None:
        """Make its files."""
        feed = memory_file()
        self.is_quick = feed >= 0
        self._fds["feed"] = feed if self.is_quick else new_file(self._feed)
        if self.is_quick:
            os.symlink(f"/proc/{os.getpid()}/fd/{feed}", self._feed)
        for name, path in self._paths.items():
            self._fds[name] = new_file(path)

    def load(self, script: bytes, is_plain: bool = False) -> None:
        """Fill it with what Scripts made; its `word` lets the keeper run that."""
        self.word = b"%d" % (self._number + SLOTS * is_plain)
        script = self._reopen + script + closing(self._number, is_plain)
        if self._fed > FEED_BYTES_KEPT:
            os.ftruncate(self._fds["feed"], 0)
        self._fed = len(script)
        while script:
            at = self._fed - len(script)
            script = script[os.pwrite(self._fds["feed"], script, at) :]

    def on_begun(self) -> None:
        """Know that what was loaded runs."""
        self._reopen = b""

    def glance(self) -> Optional[Tuple[bytes, bytes]]:
        """Take what its task printed if that is little and at hand; no disk is asked.

        The shell cuts the files before the next task: here that might wait for a disk.
        """
        found, cut = [], b""
        for name in NAMES:
            size = os.lseek(self._fds[name], 0, os.SEEK_END)
            data = bytearray(size if size <= GLANCE_BYTES and self.is_quick else 0)
            if size > len(data) or not _is_read(self._fds[name], data):
                return None
            found.append(bytes(data))
            if size:
                cut += b": >/proc/self/fd/%d; " % descriptor(self._number, name)
        self._reopen += cut
        self.is_cut = not cut
        return found[0], found[1]

    def output_path(self, name: str) -> str:
        """Return where its task's `out` or `err` gathers; '' as it is taken."""
        return self._paths.get(name, "")

    def output_paths(self) -> List[str]:
        """Both of them."""
        return [self.output_path(name) for name in NAMES]

    def take_output(self, name: str, small: int) -> Tuple[int, bytes, str]:
        """Hand over size and either data or, if it is larger than `small`, a file.

        A small file is cut and used again: making one for each task costs half of the
        rate. A large one is left to the caller, and the next task gets another.
        """
        fd = self._fds[name]
        size = os.lseek(fd, 0, os.SEEK_END)
        if size == 0:
            return 0, b"", ""
        if size <= small:
            data = os.pread(fd, size, 0)
            os.ftruncate(fd, 0)
            return size, data, ""
        taken = self._paths[name]
        path = f"{self._base}.{name}{int(taken.rpartition('.' + name)[2]) + SLOTS}"
        del self._paths[name]
        try:
            self._fds[name] = new_file(path)
        except OSError:  # the disk is full
            self.is_last = True
            return size, b"", taken
        self._paths[name] = path
        os.close(fd)
        number = descriptor(self._number, name)
        self._reopen += b"exec %d>>%s; " % (number, quote(os.fsencode(path)))
        return size, b"", taken

    def close(self) -> None:
        """Close and remove all that is its own."""
        for fd in self._fds.values():
            os.close(fd)
        for path in [self._feed, *self._paths.values()]:
            remove(path)


def _is_read(fd: int, data: bytearray) -> bool:
    """Fill it from a file's beginning; False if that would wait, or can't be told."""
    try:
        return not data or os.preadv(fd, [data], 0, os.RWF_NOWAIT) == len(data)
    except (AttributeError, OSError):
        return False
