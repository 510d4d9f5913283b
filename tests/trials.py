"""Trials of one promise, as many as one likes: acknowledged, then all is lost at once.

    destroyed(1000)     one of three, killed at the answer, its disk gone
    power_cuts(1000)    one alone, killed at the answer; what wasn't fsynced is gone

The comrade is killed by the very process that reads its answer, as soon as the answer's
last byte is there (client.ask); how long that took is measured.

A power cut is played by a small C library, preloaded (skipped without a compiler): at
each successful fsync it puts what the file holds now, or the names in the directory,
into a *shadow*. After the kill the state directory is made anew from the shadow alone:
content without an fsync, names whose directory had none, are gone. Each second time the
end of SQLite's log is left, cut at a random byte behind what was fsynced, as disks do.
"""

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import List, NamedTuple, Optional

from client import ask
from cluster import Cluster, Member, await_equal

NEVER = "worker:tag never"
WITHIN_S = 0.001  # FAULTS 52: of the answer
LOG = os.path.join("queue", "db-wal")

SHADOW = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static void put(const char *shadow, char kind, struct stat *s, int from) {
    char path[4096], temporary[4096], data[65536];
    snprintf(path, sizeof path, "%s/%c%lu", shadow, kind, (unsigned long) s->st_ino);
    snprintf(temporary, sizeof temporary, "%s.new%p", path, (void *) &data);
    int to = open(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (kind == 'f') {
        for (ssize_t n; (n = read(from, data, sizeof data)) > 0;)
            if (write(to, data, n) != n) abort();
    } else {
        DIR *names = fdopendir(dup(from));
        for (struct dirent *e; (e = readdir(names));)
            if (e->d_name[0] != '.')
                dprintf(to, "%lu %s\n", (unsigned long) e->d_ino, e->d_name);
        closedir(names);
    }
    close(to);
    if (rename(temporary, path)) abort();
}
static int seen(int result, int fd) {
    const char *home = getenv("SHADOW_OF"), *shadow = getenv("SHADOW");
    char link[64], path[4096];
    int error = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (result == 0 && home && shadow && n > 0) {
        path[n] = 0;
        struct stat s;
        int from = open(link, O_RDONLY);
        if (!strncmp(path, home, strlen(home)) && from >= 0 && !fstat(from, &s))
            put(shadow, S_ISDIR(s.st_mode) ? 'd' : 'f', &s, from);
        close(from);
    }
    errno = error;
    return result;
}
/* The number of a file that is gone may soon be another's. */
static int gone(int result, unsigned long inode) {
    char path[4096];
    snprintf(path, sizeof path, "%s/f%lu", getenv("SHADOW"), inode);
    if (result == 0 && inode)
        ((int (*)(const char *)) dlsym(RTLD_NEXT, "unlink"))(path);
    return result;
}
static unsigned long inode_of(const char *path) {
    struct stat s;
    return !getenv("SHADOW") || lstat(path, &s) ? 0 : s.st_ino;
}
int unlink(const char *path) {
    unsigned long inode = inode_of(path);
    return gone(((int (*)(const char *)) dlsym(RTLD_NEXT, "unlink"))(path), inode);
}
int fsync(int fd) { return seen(((int (*)(int)) dlsym(RTLD_NEXT, "fsync"))(fd), fd); }
int fdatasync(int fd) {
    return seen(((int (*)(int)) dlsym(RTLD_NEXT, "fdatasync"))(fd), fd);
}
"""


class Figures(NamedTuple):
    """What came of it."""

    rounds: int
    lost: List[int]  # rounds whose task is gone
    late: int  # kills later than WITHIN_S after the answer
    slowest_s: float  # from the answer to the kill
    took_s: float

    def told(self) -> str:
        """Put them into words."""
        return (
            "%d lost of %d; killed %.0f us after the answer at most (%d late); %.0f s"
            % (
                *(len(self.lost), self.rounds, self.slowest_s * 1e6, self.late),
                self.took_s,
            )
        )


class _Kills:
    """Kills a node at its answer and remembers how long that took."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.took: List[float] = []

    def add(self, node: Member, n: int) -> str:
        """Add a task, kill the node at the answer; give the id."""
        pid = node.pid

        def kill() -> None:
            answered = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            self.took.append(time.monotonic() - answered)

        words = ["add_task", "1K", "1", "1K", "true", NEVER, "", "echo %d" % n]
        code, out, err = ask(node, *words, then=kill)
        assert (code, err) == (0, b""), (code, err, node.told())
        assert node.process
        assert node.process.wait(10) == -signal.SIGKILL
        return out.decode().strip()

    def figures(self, lost: List[int]) -> Figures:
        """Give what came of it."""
        late = sum(took > WITHIN_S for took in self.took)
        took = time.monotonic() - self.began
        return Figures(len(self.took), lost, late, max(self.took), took)


def knows(node: Member, task: str) -> bool:
    """Say whether a task is in a node's queue."""
    return ask(node, "why", task)[0] == 0


def destroyed(rounds: int, first: int = 81) -> Figures:
    """Add at a node that is new each time; kill it, destroy its disk; look elsewhere.

    What is promised is one other's disk; that one tells the rest.
    """
    with Cluster(2, first=first) as cluster:
        adder = cluster.node("127.0.0.%d" % (first + 2))
        kills, lost = _Kills(), []
        for n in range(rounds):
            adder.start()
            assert "joined" in adder.printed()
            task = kills.add(adder, n)
            shutil.rmtree(str(adder.home))
            if not any(knows(node, task) for node in cluster.nodes):
                lost.append(n)
            elif n % 100 == 99:
                rows = await_equal(cluster.nodes)
                assert len(rows) == n + 1 - len(lost)
        return kills.figures(lost)


def power_cuts(rounds: int, seed: int, address: str = "127.0.0.85") -> Figures:
    """Add at a lone node and cut its power, again and again on the same disk."""
    dice = random.Random(seed)
    cluster = Cluster(1, first=int(address.rpartition(".")[2]))
    (node,) = cluster.nodes
    disk = _Disk(node)
    try:
        kills, lost, added = _Kills(), [], []
        for n in range(rounds):
            disk.watch()
            node.start()
            assert "damaged" not in node.printed(), node.printed()
            added.append(kills.add(node, n))
            disk.cut(dice.random() if n % 2 else None)
            if n % 10 == 9 or n == rounds - 1:
                disk.watch()
                node.start()
                known = node.states()
                lost += [i for i, task in enumerate(added) if task not in known]
                node.kill9()
        return kills.figures(sorted(set(lost)))
    finally:
        cluster.close()
        shutil.rmtree(str(disk.folder))


class _Disk:
    """A node's state directory, and what of it is on the disk for sure."""

    def __init__(self, node: Member) -> None:
        self._home = node.home
        self._shadow = node.top / "shadow"
        self._new = node.top / "after the power cut"
        # Blanks in LD_PRELOAD part its items, so it can't lie in the node's folder.
        self.folder = Path(tempfile.mkdtemp(prefix="leoronic-shadow-"))
        source, library = self.folder / "shadow.c", self.folder / "shadow.so"
        source.write_text(SHADOW)
        compiler = shutil.which("cc")
        assert compiler, "there is no C compiler"
        command = [
            compiler,
            "-shared",
            "-fPIC",
            "-o",
            str(library),
            str(source),
            "-ldl",
        ]
        subprocess.run(command, check=True)
        node.env["SHADOW_OF"], node.env["SHADOW"] = str(self._home), str(self._shadow)
        node.env["LD_PRELOAD"] = str(library)

    def watch(self) -> None:
        """Begin anew: what is there now is on the disk."""
        shutil.rmtree(str(self._shadow), ignore_errors=True)
        self._shadow.mkdir()
        self._home.mkdir(mode=0o700, exist_ok=True)
        for folder, _, names in os.walk(str(self._home)):
            inside = [
                (os.lstat(os.path.join(folder, n)).st_ino, n)
                for n in os.listdir(folder)
            ]
            listed = "".join("%d %s\n" % pair for pair in inside)
            (self._shadow / ("d%d" % os.stat(folder).st_ino)).write_text(listed)
            for name in names:
                path = os.path.join(folder, name)
                copy = self._shadow / ("f%d" % os.lstat(path).st_ino)
                shutil.copyfile(path, str(copy))

    def cut(self, luck: Optional[float]) -> None:
        """Leave what was fsynced; with luck this part of the log's end as well."""
        shutil.rmtree(str(self._new), ignore_errors=True)
        self._restore(os.stat(str(self._home)).st_ino, self._home, self._new)
        log, kept = self._home / LOG, self._new / LOG
        if luck is not None and log.exists() and kept.exists():
            data, sure = log.read_bytes(), kept.stat().st_size
            if data[:sure] == kept.read_bytes():
                kept.write_bytes(data[: sure + int(luck * (len(data) - sure))])
        shutil.rmtree(str(self._home))
        self._new.rename(self._home)

    def _restore(self, inode: int, old: Path, new: Path) -> None:
        new.mkdir(mode=0o700)
        listed = self._shadow / ("d%d" % inode)
        lines = listed.read_text().splitlines() if listed.exists() else []
        for line in lines:
            number, _, name = line.partition(" ")
            content = self._shadow / ("f" + number)
            if (self._shadow / ("d" + number)).exists():
                self._restore(int(number), old / name, new / name)
            elif (old / name).is_dir():
                (new / name).mkdir(mode=0o700)
            elif content.exists():
                shutil.copyfile(str(content), str(new / name))
            elif (old / name).exists():
                (new / name).write_bytes(b"")  # its name is there, its content isn't
