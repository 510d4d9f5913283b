"""What this machine has: cores, memory and disk, what is free of them, and programs.

Reason for this file beside sandbox.py: to ask the machine is no part of running tasks;
both are short by themselves.

Rules. Asked anew at each call. What Linux tells itself comes first: psutil says the
same, and to load it takes over 1 MiB of an old machine's memory. It is asked where
/proc lacks the answer (Linux before 3.14 has no MemAvailable, other systems no /proc).
"""

import os
from typing import Any, Dict, Mapping, NamedTuple

MEMINFO = "/proc/meminfo"


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
    fields = _meminfo()
    if "MemTotal" in fields:
        return Machine(cores, fields["MemTotal"])
    psutil = _psutil()
    if psutil:
        return Machine(cores, int(psutil.virtual_memory().total))
    return Machine(cores, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def free_memory() -> int:
    """Bytes that can be had without swapping."""
    fields = _meminfo()
    if "MemAvailable" in fields:
        return fields["MemAvailable"]
    psutil = _psutil()
    if psutil:
        return int(psutil.virtual_memory().available)
    if not fields:
        return machine().memory  # unknown: what running tasks asked for still counts
    return sum(fields.get(name, 0) for name in ("MemFree", "Buffers", "Cached"))


def _meminfo() -> Dict[str, int]:
    """What Linux tells, in bytes; empty elsewhere."""
    try:
        with open(MEMINFO, encoding="ascii") as file:
            rows = [line.split() for line in file]
    except OSError:
        return {}
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) > 1}


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
