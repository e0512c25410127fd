"""Trains and scores every point of a sweep; finished points are skipped, crashes do not stop the rest.

    python -m experiments.sweep --config=configs/so762.py --sweep=objective,seed --workdir=workdirs/objective
    python -m experiments.sweep ... --dry_run          # what would run
    python -m experiments.sweep ... --jobs=2           # two processes; each takes the next free point
    CUDA_VISIBLE_DEVICES=0,1 python -m experiments.sweep ... --jobs=8    # four of them on each GPU
    python -m experiments.sweep ... --lanes=8          # seeds and learning rates side by side, one program
    python -m experiments.sweep ... --list | xargs -P 4 -I{} sh -c "{}"     # or a SLURM array over --point=K
    python -m experiments.report --workdir=workdirs/objective

An axis is a generator `sweep_NAME()` of the config file. Points are scored on validation speakers unless
--split=test. The exit code is 1 if a point failed.
"""

import importlib.util
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from experiments import _main

_CONFIG = _main.define_config("config", None, "Experiment with sweep_NAME generators.")
_SWEEP = flags.DEFINE_list("sweep", None, "Axes, e.g. projector,seed; the last one varies fastest.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the points, one folder each.")
_SCORE = flags.DEFINE_enum("score", "heard", ["none", "heard", "answer"], "What to score.")
_SPLIT = flags.DEFINE_enum("split", "validation", ["test", "validation", "train"], "On what.")
_LIMIT = flags.DEFINE_integer("limit", 0, "Score only so many utterances; 0: all.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Show the points and their state, run nothing.")
_LIST = flags.DEFINE_bool("list", False, "Print one command a point, run nothing.")
_POINT = flags.DEFINE_list("point", None, "Run only these points, by number.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Processes; 1 runs all points in this one.", lower_bound=1)
_LANES = flags.DEFINE_integer(
    "lanes", 1, "Points that may train as one program; 1: each alone.", lower_bound=1
)
_INVOCATION = flags.DEFINE_string("invocation", "", "Set by --jobs for its processes.")
flags.mark_flags_as_required(["config", "sweep", "workdir"])


def main(argv):
    del argv
    import jax

    from tiny_align_jax import sweep, sweep_run
    from tiny_align_jax.types import ConfigError

    path, *_ = config_flags.get_config_filename(flags.FLAGS["config"]).split(":")
    module = _module(path)
    points = sweep.expand(
        _main.resolve_config(_CONFIG.value), sweep.axes(module, _SWEEP.value or [])
    )
    for point in points:  # an axis may have brought another corpus
        _main.fill_folders(point.config)
    chosen = sorted({int(k) for k in _POINT.value}) if _POINT.value else range(len(points))
    if any(k not in range(len(points)) for k in chosen):
        raise ConfigError(f"--point={_POINT.value}; expected 0 to {len(points) - 1}")
    points = [points[k] for k in chosen]
    workdir = Path(str(_WORKDIR.value))
    if _LIST.value:
        print("\n".join(_command(f"--point={p.index}") for p in points))
        return
    if _DRY_RUN.value:
        for p in points:
            state = sweep.why_impossible(p) or sweep_run.read_status(workdir / p.name)["status"]
            print(f"{p.index:4d}  {p.name}  [{state}]")
        return
    if _JOBS.value > 1:
        code = _supervise(len(points), _POINT.value or [])
        lacking = [
            str(p.index)
            for p in points
            if sweep_run.lacked_memory(sweep_run.read_status(workdir / p.name))
        ]
        if lacking:
            logging.warning(
                "%d points lacked memory beside others; one at a time now", len(lacking)
            )
            code = _supervise(1, lacking)
        sys.exit(code)
    # Programs outlive the process: the next sweep over the same shapes starts at once.
    jax.config.update("jax_compilation_cache_dir", f"{_main.CACHE_DIR.value}/programs")
    settings = sweep_run.Settings(
        _SCORE.value,
        _SPLIT.value,
        _LIMIT.value,
        invocation=_INVOCATION.value or str(time.time()),
        lanes=_LANES.value,
    )
    _main.log_to_file(workdir / "logs" / f"process_{os.getpid()}.log")
    runner = sweep_run.Runner(workdir, _main.CACHE_DIR.value, settings)
    found = runner.run(points, lambda p, s: print(_line(p, s), flush=True))
    bad = [s for s in found.values() if s["status"] in (sweep_run.FAILED, sweep_run.INTERRUPTED)]
    logging.info("next: python -m experiments.report --workdir=%s", workdir)
    sys.exit(1 if bad else 0)


def _line(point, status) -> str:
    return f"{point.index:4d}  {point.name}  {status['status']}  {status.get('error', '')}".rstrip()


def _module(path: str):
    from tiny_align_jax.types import ConfigError

    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config={path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _command(*extra: str) -> str:
    skip = ("--list", "--point", "--jobs")
    kept = [a for a in sys.argv[1:] if a.lstrip("-").split("=")[0] not in [s[2:] for s in skip]]
    return shlex.join([sys.executable, "-m", "experiments.sweep", *kept, *extra])


def _environments(count: int, given: Mapping[str, str]) -> list[dict[str, str]]:
    """One for each process; the GPUs of CUDA_VISIBLE_DEVICES are dealt out in turn.

    An allocator keeps what it once took, so each gets a share of its GPU, or of the fraction given: else those
    that start later find no room for their programs. A tenth is left for these.
    """
    gpus = [gpu for gpu in given.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    fraction = float(given.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9"))
    share = fraction / math.ceil(count / max(len(gpus), 1))
    shared = {**given, "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{share:.4f}"}
    shared["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if not gpus:
        return [shared] * count
    return [{**shared, "CUDA_VISIBLE_DEVICES": gpus[k % len(gpus)]} for k in range(count)]


def _supervise(num_points: int, chosen: Sequence[str]) -> int:
    """Processes that share the points; one that dies is started again and skips what is done."""
    chosen = [f"--point={','.join(chosen)}"] if chosen else []
    command = shlex.split(_command(*chosen, f"--invocation={time.time()}"))
    environments = _environments(min(_JOBS.value, num_points), os.environ)
    running = [(subprocess.Popen(command, env=env), env) for env in environments]
    codes, restarts = [], 2 * num_points
    while running:
        process, env = running.pop(0)
        code = process.wait()
        if code in (0, 1, 2) or not restarts:
            codes.append(code)
        else:
            logging.warning("process ended with %d; starting it again", code)
            running.append((subprocess.Popen(command, env=env), env))
            restarts -= 1
    return max((abs(code) for code in codes), default=0) and 1


if __name__ == "__main__":
    _main.run(main)
