"""What this machine has: cores, memory and disk, what is free of them, and programs.

Reason for this file beside sandbox.py: to ask the machine is no part of running tasks;
both are short by themselves.

Rules. Asked anew at each call. What Linux tells itself comes first: psutil says the
same, and to load it takes over 1 MiB of an old machine's memory. It is asked where
/proc lacks the answer (Linux before 3.14 has no MemAvailable, other systems no /proc).
"""

import os
import re
from typing import Any, Dict, Mapping, NamedTuple

MEMINFO, MEMINFO_BYTES = "/proc/meminfo", 4096  # it stands at the beginning
# What is looked at of it.
_MEMINFO_ROW = re.compile(
    rb"^(MemTotal|MemAvailable|MemFree|Buffers|Cached): +([0-9]+)", re.M
)


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
    """What Linux tells, in bytes; empty elsewhere. Asked before each start."""
    try:
        with open(MEMINFO, "rb", buffering=0) as file:
            rows = _MEMINFO_ROW.findall(file.read(MEMINFO_BYTES))
    except OSError:
        return {}
    return {name.decode("ascii"): int(kib) * 1024 for name, kib in rows}


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


def is_program(name: str, directory: str, environ: Mapping[str, str]) -> bool:
    """Whether the system itself can execute it; a shell would read other files."""
    if "/" in name:
        path = os.path.join(directory, name)
        if not os.path.isfile(path):
            return False  # never open a FIFO
    else:
        path = which(name, directory, environ)
    try:
        with open(path, "rb", buffering=0) as file:
            start = file.read(4)
    except OSError:
        return False
    return os.access(path, os.X_OK) and (start == b"\x7fELF" or start[:2] == b"#!")
