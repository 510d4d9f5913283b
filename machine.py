"""What this machine has: cores, memory and disk, what is free of them, and programs.

Reason for this file beside sandbox.py: to ask the machine is no part of running tasks;
both are short by themselves.

Rules. Asked anew at each call; psutil where it is installed, else the system itself.
"""

import os
from typing import Any, Mapping, NamedTuple


class Machine(NamedTuple):
    cores: int
    memory: int  # bytes


def _psutil() -> Any:
    try:
        import psutil
    except ImportError:
        return None
    return psutil


def machine() -> Machine:
    """Cores that this process may use, and memory."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    psutil = _psutil()
    if psutil:
        return Machine(cores, int(psutil.virtual_memory().total))
    return Machine(cores, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def free_memory() -> int:
    """Bytes that can be had without swapping."""
    psutil = _psutil()
    if psutil:
        return int(psutil.virtual_memory().available)
    try:
        with open("/proc/meminfo", "rb") as file:
            fields = dict(line.split()[:2] for line in file)
    except OSError:
        return machine().memory  # unknown: what running tasks asked for still counts
    if b"MemAvailable:" in fields:
        return int(fields[b"MemAvailable:"]) * 1024
    old_kernel = (b"MemFree:", b"Buffers:", b"Cached:")
    return sum(int(fields.get(name, 0)) for name in old_kernel) * 1024


def free_disk(directory: str) -> int:
    """Bytes that this user may still write there; 0 if the directory is gone."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def which(name: str, directory: str, environ: Mapping[str, str]) -> str:
    """The program that a task in that directory would find, or ''."""
    for folder in environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(directory, folder, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return ""
