"""Runs named commands side by side on the GPUs of one machine, as far as memory and cores go.

Processes that share a GPU and take what they like end each other. Here every job says what it needs, gets that
and no more (JAX's allocator is capped), and waits until it is free. A job's output goes to a log of its
own; what ended well is not run again. Plain processes: nothing here imports JAX.
"""

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from tiny_align_jax.types import ConfigError

STATE_FILE = "jobs.json"
FINISHED, FAILED, STOPPED, SKIPPED = "finished", "failed", "stopped", "skipped"
QUIET = ("", "gpu", "machine")
_USABLE = 0.92  # of a GPU's memory
_ALLOCATOR = 0.8  # of a job's share; CUDA, the programs and their graphs live outside the allocator
_GRACE_S = 10.0


@dataclasses.dataclass(frozen=True)
class Job:
    """A command and what it needs.

    Attributes:
        name: of its log and its status.
        command: arguments of Python, as in a shell; `{out}` stands for the folder of all results.
        gpu_gb: memory of one GPU that its processes may take together, in 10^9 bytes; 0 for none.
        cores: CPU cores that it keeps busy.
        after: names of jobs that must have ended well before.
        quiet: 'gpu': a timing, alone on its GPU; 'machine': alone on the machine.
        limit_s: it is stopped after so many seconds.
    """

    name: str
    command: str
    gpu_gb: float = 8.0
    cores: int = 4
    after: tuple[str, ...] = ()
    quiet: str = ""
    limit_s: float = 3600.0


@dataclasses.dataclass(frozen=True)
class Machine:
    """What there is.

    Attributes:
        gpus_gb: memory of each GPU in 10^9 bytes; empty without GPUs.
        cores: CPU cores.
        gpu_names: of each GPU in CUDA_VISIBLE_DEVICES; empty for 0, 1, ...
    """

    gpus_gb: tuple[float, ...]
    cores: int
    gpu_names: tuple[str, ...] = ()

    @classmethod
    def here(cls, visible: str = "") -> "Machine":
        """Of this machine; GPUs as nvidia-smi shows them, of `visible` (CUDA_VISIBLE_DEVICES) if that is set."""
        query = [
            "nvidia-smi",
            "--query-gpu=index,uuid,memory.total",
            "--format=csv,noheader,nounits",
        ]
        try:
            shown = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            shown = ""
        size_gb: dict[str, float] = {}
        for line in shown.splitlines():
            index, uuid, mib = line.split(", ")
            size_gb[index] = size_gb[uuid] = int(mib) * 2**20 / 1e9
        indices = [name for name in size_gb if name.isdecimal()]
        names = [name for name in visible.split(",") if name in size_gb] if visible else indices
        gpus_gb = tuple(size_gb[name] for name in names)
        return cls(gpus_gb, len(os.sched_getaffinity(0)), tuple(names))


@dataclasses.dataclass
class _Running:
    job: Job
    gpu: int
    process: subprocess.Popen
    start_s: float


def choose(jobs: Sequence[Job], only: Sequence[str], skip: Sequence[str]) -> tuple[Job, ...]:
    """`only` these (all, if none is named) with those they need, without `skip` and those that need them.

    Raises:
        ConfigError: a name that no job has.
    """
    names = [job.name for job in jobs]
    if unknown := sorted({*only, *skip} - set(names)):
        raise ConfigError(f"no job is named {', '.join(unknown)}; there are: {', '.join(names)}")
    wanted, left_out = set(only or names), set(skip)
    for job in reversed(jobs):  # those that a job needs stand before it
        wanted |= set(job.after) if job.name in wanted else set()
    for job in jobs:
        left_out |= {job.name} if left_out & set(job.after) else set()
    return tuple(job for job in jobs if job.name in wanted - left_out)


def check(jobs: Sequence[Job], machine: Machine) -> None:
    """Raises ConfigError if a job can never run here: it would wait for ever."""
    names, seen = [job.name for job in jobs], set()
    problems = [
        f"two jobs are named {n!r}" for n in sorted({n for n in names if names.count(n) > 1})
    ]
    for job in jobs:
        room = _USABLE * max(machine.gpus_gb, default=0.0)
        if job.gpu_gb > room and machine.gpus_gb:
            problems.append(f"{job.name}: gpu_gb={job.gpu_gb:g}; expected at most {room:.1f}")
        if job.quiet not in QUIET:
            problems.append(f"{job.name}: quiet={job.quiet!r}; expected one of {QUIET}")
        if missing := [name for name in job.after if name not in seen]:
            problems.append(f"{job.name}: after={missing}; expected jobs that stand before it")
        seen.add(job.name)
    if problems:
        raise ConfigError("jobs: " + "; ".join(problems))


def run(
    jobs: Sequence[Job],
    out: Path,
    machine: Machine,
    environment: Mapping[str, str],
    budget_s: float = 0.0,
    tell: Callable[[str], None] = print,
    poll_s: float = 0.2,
) -> dict[str, dict[str, Any]]:
    """Runs what has not finished yet; earlier jobs have the first choice of what is free.

    Args:
        environment: of the processes, whose GPU and memory are set for each.
        budget_s: after so many seconds nothing is started and what runs is stopped; 0 for no limit.

    Returns:
        Status, seconds and exit code of every job, by name; kept in OUT/jobs.json as they come.

    Raises:
        ConfigError: a job that can never run on this machine.
    """
    check(jobs, machine)
    return _Scheduler(jobs, out, machine, environment, budget_s, tell).run(poll_s)


class _Scheduler:
    def __init__(self, jobs, out, machine, environment, budget_s, tell):
        self._out, self._machine, self._budget_s, self._tell = Path(out), machine, budget_s, tell
        self._environment = environment
        (self._out / "logs").mkdir(parents=True, exist_ok=True)
        self._state_file = self._out / STATE_FILE
        before = json.loads(self._state_file.read_text()) if self._state_file.is_file() else {}
        self._state = {k: v for k, v in before.items() if v["status"] == FINISHED}
        self._waiting = [job for job in jobs if job.name not in self._state]
        self._running: list[_Running] = []
        self._start_s = time.monotonic()

    def run(self, poll_s: float) -> dict[str, dict[str, Any]]:
        try:
            while self._waiting or self._running:
                self._collect()
                if self._is_over():
                    break
                self._start_what_fits()
                time.sleep(poll_s)
        finally:  # Ctrl-C, too, leaves no process behind
            _stop(*(one.process for one in self._running))  # together: one grace for all
            for one in list(self._running):
                self._end(one, STOPPED)
        return self._state

    def _is_over(self) -> bool:
        return bool(self._budget_s) and time.monotonic() - self._start_s > self._budget_s

    def _collect(self) -> None:
        for one in list(self._running):
            code = one.process.poll()
            if code is not None:
                self._end(one, FAILED if code else FINISHED)
            elif time.monotonic() - one.start_s > one.job.limit_s:
                self._end(one, STOPPED)

    def _end(self, one: _Running, status: str) -> None:
        if one.process.poll() is None:
            _stop(one.process)
        self._running.remove(one)
        seconds = round(time.monotonic() - one.start_s, 1)
        self._note(one.job.name, status, seconds=seconds, code=one.process.returncode)
        if status != FINISHED:
            self._tell(f"  {_tail(self._log(one.job))}")

    def _note(self, name: str, status: str, **facts: Any) -> None:
        self._state[name] = {"status": status, **facts}
        self._state_file.write_text(json.dumps(self._state, indent=1))
        about = ", ".join(f"{key} {value}" for key, value in facts.items())
        self._tell(f"{time.monotonic() - self._start_s:7.1f} s  {name}: {status} ({about})")

    def _start_what_fits(self) -> None:
        # GPUs that run empty for a timing before what comes later may use them.
        held: set[int] = set()
        for job in list(self._waiting):
            ended = [self._state.get(name, {}).get("status") for name in job.after]
            if any(status not in (None, FINISHED) for status in ended):
                self._waiting.remove(job)
                self._note(job.name, SKIPPED, because="a job before it did not end well")
                continue
            if not all(ended):
                continue
            room = {gpu: gb for gpu, gb in self._room(job).items() if gpu not in held}
            best = max(room, key=lambda gpu: room[gpu], default=None)
            if best is not None and room[best] >= job.gpu_gb:
                self._waiting.remove(job)
                self._start(job, best)
            elif job.quiet:
                held |= set(self._gpus()) if job.quiet == "machine" else {self._emptiest(held)}

    def _gpus(self) -> dict[int, float]:
        """Memory by number; a machine without GPUs counts as one that has enough."""
        return dict(enumerate(self._machine.gpus_gb or (float("inf"),)))

    def _emptiest(self, held: set[int]) -> int:
        load = {gpu: sum(one.gpu == gpu for one in self._running) for gpu in self._gpus()}
        return min(load, key=lambda gpu: (gpu in held, load[gpu]))

    def _room(self, job: Job) -> dict[int, float]:
        """Free memory in 10^9 bytes of each GPU that may take a job now."""
        busy = self._running
        if any(one.job.quiet == "machine" for one in busy) or (busy and job.quiet == "machine"):
            return {}
        if busy and sum(one.job.cores for one in busy) + job.cores > self._machine.cores:
            return {}
        room = {}
        for gpu, total_gb in self._gpus().items():
            here = [one.job for one in busy if one.gpu == gpu]
            if not (any(other.quiet for other in here) or (here and job.quiet)):
                room[gpu] = _USABLE * total_gb - sum(other.gpu_gb for other in here)
        return room

    def _start(self, job: Job, gpu: int) -> None:
        environment = {**self._environment, "PYTHONUNBUFFERED": "1"}
        if self._machine.gpus_gb:
            environment |= _share(job, gpu, self._machine)
        command = [sys.executable, *shlex.split(job.command.replace("{out}", str(self._out)))]
        with self._log(job).open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self._running.append(_Running(job, gpu, process, time.monotonic()))
        self._tell(f"{time.monotonic() - self._start_s:7.1f} s  {job.name}: started (GPU {gpu})")

    def _log(self, job: Job) -> Path:
        return self._out / "logs" / f"{job.name}.log"


def _share(job: Job, gpu: int, machine: Machine) -> dict[str, str]:
    """One GPU, and the allocator's limit, which keeps the job within its share of it."""
    return {
        "CUDA_VISIBLE_DEVICES": machine.gpu_names[gpu] if machine.gpu_names else str(gpu),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{_ALLOCATOR * job.gpu_gb / machine.gpus_gb[gpu]:.4f}",
    }


def _stop(*processes: subprocess.Popen) -> None:
    """Ends processes and all that they started; each may save what it has within the grace."""
    parents = [psutil.Process(process.pid) for process in processes]
    family = [*parents, *(child for p in parents for child in p.children(recursive=True))]
    for number in (signal.SIGTERM, signal.SIGKILL):
        until_s = time.monotonic() + _GRACE_S
        for process in processes:
            with contextlib.suppress(ProcessLookupError):  # nobody is left
                os.killpg(process.pid, number)
        while any(map(_is_alive, family)) and time.monotonic() < until_s:
            time.sleep(0.05)
    for process in processes:
        process.wait()


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _tail(log: Path, num_chars: int = 300) -> str:
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    return text[-num_chars:].replace("\n", "\n  ")


def table(jobs: Sequence[Job], state: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: every job, how it ended and how long it took."""
    lines = ["| job | status | seconds |", "| --- | --- | ---: |"]
    for job in jobs:
        found = state.get(job.name, {"status": "not started"})
        lines.append(f"| {job.name} | {found['status']} | {found.get('seconds', '')} |")
    return "\n".join(lines)
