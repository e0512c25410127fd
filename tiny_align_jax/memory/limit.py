"""A command under a hard limit of memory: a control group where one can be made, else a watchdog.

The control group (cgroup v2, `memory.max`, no swap) is the kernel's own and cannot be outrun. The watchdog
adds up the resident memory of the command and its children every few milliseconds and kills them all above the
limit. Neither is RLIMIT_AS, which counts addresses that nothing stands behind.
"""

import dataclasses
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from tiny_align_jax.types import ConfigError

_EVERY_S = 0.02
_MOUNTS = Path("/proc/mounts")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a command.

    Attributes:
        returncode: its exit code; negative for the signal that ended it.
        killed: it went over the limit.
        peak_bytes: the most that was seen (watchdog) or charged (control group, file pages included).
        how: 'cgroup memory.max' or 'watchdog'.
    """

    returncode: int
    killed: bool
    peak_bytes: int
    how: str


def run(command: Sequence[str], limit_bytes: int, *, allow_cgroup: bool = True) -> Outcome:
    """Runs `command` to its end, or to the limit.

    Args:
        command: program and arguments.
        limit_bytes: of resident memory, of the command and all it starts.
        allow_cgroup: False takes the watchdog in any case.

    Raises:
        ConfigError: a limit of nothing.
    """
    if limit_bytes <= 0:
        raise ConfigError(f"limit_bytes={limit_bytes}; expected a positive number of bytes")
    group = _make_group(limit_bytes) if allow_cgroup else None
    if group is None:
        return _watched(command, limit_bytes)
    enter = ["/bin/sh", "-c", f'echo $$ > "{group}/cgroup.procs" && exec "$@"', "sh"]
    try:
        code = subprocess.run([*enter, *command], check=False).returncode
        events = dict(line.split() for line in (group / "memory.events").read_text().splitlines())
        peak = group / "memory.peak"  # since Linux 5.19
        peak_bytes = int(peak.read_text()) if peak.is_file() else 0
        return Outcome(code, int(events["oom_kill"]) > 0, peak_bytes, "cgroup memory.max")
    finally:
        group.rmdir()


def _make_group(limit_bytes: int) -> Path | None:
    """A control group of version 2 with the limit set; None where there is none to be had."""
    if not _MOUNTS.is_file():
        return None
    mounts = [line.split() for line in _MOUNTS.read_text().splitlines()]
    for _, where, kind, *_ in mounts:
        if kind != "cgroup2":
            continue
        group = Path(where) / f"tiny_align_{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / "memory.max").write_text(str(limit_bytes))
            (group / "memory.swap.max").write_text("0")
            return group
        except OSError:  # the memory controller is not ours to use
            group.rmdir()
    return None


def _watched(command: Sequence[str], limit_bytes: int) -> Outcome:
    with subprocess.Popen(command, start_new_session=True) as process:
        watched, peak_bytes = psutil.Process(process.pid), 0
        while process.poll() is None:
            peak_bytes = max(peak_bytes, _resident_bytes(watched))
            if peak_bytes > limit_bytes:
                os.killpg(process.pid, 9)
                return Outcome(process.wait(), True, peak_bytes, "watchdog")
            time.sleep(_EVERY_S)
        return Outcome(process.returncode, False, peak_bytes, "watchdog")


def _resident_bytes(process: psutil.Process) -> int:
    """Of a process and its children; 0 once it has ended."""
    total = 0
    try:
        for each in (process, *process.children(recursive=True)):
            total += each.memory_info().rss
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        pass
    return total
