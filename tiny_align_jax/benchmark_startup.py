"""Seconds from the start of a process to its first training step done, cold and from the program cache."""

import collections
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import psutil

from tiny_align_jax import benchmark_steps
from tiny_align_jax.benchmark_sizes import Size
from tiny_align_jax.benchmark_timing import Row
from tiny_align_jax.train import step as step_lib

_COMPILED = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT = "/jax/compilation_cache/cache_hits"


class Compilations:
    """Counts programs that JAX asked XLA for while the block runs, and how many came off the disk.

    Attributes:
        names: programs by the name of the jitted function, 'jit(steps)' for example.
        seconds: that they took.
        hits: how many came off the disk.
    """

    def __enter__(self) -> "Compilations":
        self.names: collections.Counter[str] = collections.Counter()
        self.seconds, self.hits = 0.0, 0
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        jax.monitoring.register_event_listener(self._on_event)
        self._open = True
        return self

    def __exit__(self, *unused) -> None:
        self._open = False  # JAX offers no public way to take one listener back

    @property
    def count(self) -> int:
        """Programs in all."""
        return self.names.total()

    def _on_duration(
        self, event: str, duration_secs: float, fun_name: str | int = "", **unused
    ) -> None:
        if self._open and event == _COMPILED:
            self.names[str(fun_name)] += 1
            self.seconds += duration_secs

    def _on_event(self, event: str, **unused) -> None:
        self.hits += int(self._open and event == _CACHE_HIT)


def first_step(size: Size, size_name: str) -> list[Row]:
    """One step of `embedlink_ctc` in this process, timed from the process's own start."""
    facts: dict[str, Any] = {"imported_s": _age_s()}
    jax.block_until_ready(jnp.ones(()) + 1)
    facts["device_ready_s"] = _age_s()
    with Compilations() as compilations:
        problem = benchmark_steps.make(size, "embedlink_ctc", size.seen_rows)
        facts["problem_ready_s"] = _age_s()
        steps = step_lib.make_resident_steps(problem.spec)
        shape = problem.shape
        index_KB = jnp.zeros((1, shape.batch_size), jnp.int32)
        jax.block_until_ready(
            steps(
                problem.state, problem.frozen, problem.corpus, index_KB,
                jnp.ones(index_KB.shape), 1, max_frames=shape.num_frames,
            )
        )  # fmt: skip
    seconds = _age_s()
    facts |= {
        "programs": compilations.count,
        "programs_from_cache": compilations.hits,
        "compile_s": compilations.seconds,
    }
    return [Row("first_step", size_name, "", seconds, facts=facts)]


def _age_s() -> float:
    """Seconds since this process began."""
    return time.time() - psutil.Process().create_time()


def startup(command: list[str], size_name: str, read_rows) -> list[Row]:
    """Two processes one after the other that share an empty program cache.

    Args:
        command: arguments of Python that run case `first_step` and write its rows to `{out}`.
        size_name: of the rows.
        read_rows: (folder, case, size) -> rows written there.
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix="tiny_align_jax_programs_") as folder:
        for variant in ("first start", "second start"):
            out = Path(folder) / variant.split()[0]
            line = [part.format(out=out, programs=folder) for part in command]
            # By `env`: this process's own folder of programs would be inherited.
            own = f"JAX_COMPILATION_CACHE_DIR={folder}"
            subprocess.run(["env", own, sys.executable, *line], check=True)
            found = read_rows(out, "first_step", size_name)[0]
            rows.append(Row("startup", size_name, variant, found["seconds"], facts=found["facts"]))
    return rows
