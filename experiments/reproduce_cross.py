"""The ablation tables of docs/results.md on split `so762`, one stage a command; a stage resumes where it was.

    python -m experiments.reproduce_cross --stage=screen --workdir=workdirs/cross   # every axis, 1 seed, short
    python -m experiments.reproduce_cross --stage=search --workdir=workdirs/cross   # both objectives, 32 runs each
    python -m experiments.reproduce_cross --stage=full --workdir=workdirs/cross     # the best, 3 seeds, test speakers
    python -m experiments.reproduce_cross --stage=answers --workdir=workdirs/cross  # wording and snap mode
    python -m experiments.reproduce_cross --stage=stages --workdir=workdirs/cross   # min_risk, LoRA behind the best
    python -m experiments.reproduce_cross --stage=race --workdir=workdirs/cross     # time to quality

`full` takes the five best rows of `screen` and the best setting of each objective of `search` (validation
speakers), `stages` starts from `full`. Each stage writes WORKDIR/<stage>/report with tables and pictures.
"""

import functools
import json
import shlex
import subprocess
import sys
from pathlib import Path

from absl import flags

from experiments import _main

_STAGE = flags.DEFINE_enum(
    "stage", None, ["screen", "search", "full", "answers", "stages", "race"], "What to run.",
    required=True,
)  # fmt: skip
_WORKDIR = flags.DEFINE_string("workdir", "workdirs/cross", "Folder of all stages.")
_JOBS = flags.DEFINE_integer("jobs", 10, "Processes at a time.")
_FLAGS = flags.DEFINE_string(
    "sweep_flags", "", "Further flags of every sweep, e.g. a smaller encoder."
)
_ABLATIONS = "configs/ablations"
_SEEDS = 3
_BEST = 5


def main(argv):
    del argv
    globals()[f"_{_STAGE.value}"](Path(_WORKDIR.value))


def _screen(folder):
    _sweep(
        folder / "screen",
        f"{_ABLATIONS}/cross.py:screen",
        "cell,learning_rate",
        "--lanes=2",
    )
    _report(folder / "screen", "--best_of=learning_rate")


def _search(folder):
    _sweep(
        folder / "search",
        f"{_ABLATIONS}/search.py",
        "setting,learning_rate",
        "--lanes=4",
    )
    _report(folder / "search", "--metric=rouge1")


def _full(folder):
    """Chosen rows again, on the whole recipe; test speakers are scored here, once."""
    cells = _chosen(folder / "screen", _BEST)
    best = [  # a reading can repeat words, which costs WER and not ROUGE-1: both may choose
        *_chosen(folder / "search", 1, "embedlink:"),
        *_chosen(folder / "search", 1, "embedlink:", metric="rouge1"),
        *_chosen(folder / "search", 1, "embedlink_ctc:"),
    ]
    for config, axis, rows in (
        (f"{_ABLATIONS}/cross.py", "cell", cells),
        (f"{_ABLATIONS}/search.py:full", "setting", best),
    ):
        points = [
            str(number * _SEEDS + seed) for number in dict.fromkeys(rows) for seed in range(_SEEDS)
        ]
        axes = f"{axis},learning_rate,seed"
        _sweep(
            folder / "full", config, axes, f"--point={','.join(points)}",
            "--split=test", "--score=answer", "--config.train.validate_every=1000",
        )  # fmt: skip
    _report(folder / "full", "--scoring=test/answer", "--system=heard,answer,oracle")


def _answers(folder):
    for name in ("instruction", "snap"):
        _sweep(
            folder / "answers",
            f"{_ABLATIONS}/{name}.py",
            name,
            "--score=answer",
            "--limit=120",
            jobs=6,
        )
    _report(folder / "answers", "--system=answer,oracle", "--metric=rouge1")


def _stages(folder):
    start = f"--config.train.init_from={_start_of_stages(folder / 'full')}"
    _sweep(
        folder / "stages",
        f"{_ABLATIONS}/stages.py",
        "stage,learning_rate",
        start,
        "--lanes=2",
        jobs=8,
    )
    _report(folder / "stages", "--best_of=learning_rate")


def _start_of_stages(full):
    """The first run with the recipe's projector on the recipe's frames."""
    from configs.ablations import stages
    from tiny_align_jax import registry
    from tiny_align_jax.train import checkpoint
    from tiny_align_jax.types import ConfigError

    def parts(config):
        keys = ("projector", "objective.name", "encoder.asset", "encoder.layers")
        config = registry.without_unread(config)
        return [functools.reduce(lambda part, k: part[k], key.split("."), config) for key in keys]

    wanted = parts(json.loads(stages.get_config().to_json_best_effort()))
    for weights in sorted(full.glob(f"*/{checkpoint.PROJECTOR_WEIGHTS}")):
        if parts(json.loads(weights.with_name("config.json").read_text())) == wanted:
            return weights.parent
    raise ConfigError(
        f"{full}: no run with the projector of {_ABLATIONS}/stages.py; run --stage=full"
    )


def _race(folder):
    """The end-to-end learning rate is searched first; then each system alone on the device."""
    from configs import time_to_quality

    config, count = "configs/time_to_quality.py", len(time_to_quality.RATES)
    end_to_end = [str(k) for k in range(2 * count, 4 * count)]
    _sweep(
        folder / "race_search", f"{config}:search", "system,learning_rate",
        f"--point={','.join(end_to_end)}", f"--lanes={count}", jobs=2,
    )  # fmt: skip
    best = _chosen(folder / "race_search", 1)[0]
    ours, paper = 0 * count + 2, 1 * count + 2
    points = f"--point={2 * ours},{2 * paper},{2 * best + 1}"
    axes = "system,learning_rate,end"
    _sweep(folder / "race", config, axes, points, "--score=none", jobs=1)
    names = [_label(folder / "race", k) for k in (2 * ours, 2 * best + 1, 2 * paper)]
    _report(folder / "race", f"--race={':'.join(names)}", "--metric=rouge1")


def _chosen(workdir, count, starts_with="", metric="wer"):
    """Numbers of the best points of a sweep on validation speakers, equal trainings once."""
    from tiny_align_jax import report

    rows, _ = report.load(workdir)
    rows = [r for r in rows if r.name.startswith(starts_with) and metric in r.scores]
    sign = 1 if metric == "wer" else -1
    best: dict[tuple[float, ...], int] = {}
    for row in sorted(rows, key=lambda r: sign * r.scores[metric].mean):
        # All scores: two different trainings may well make the same number of word errors.
        same = tuple(score.mean for score in row.scores.values())
        best.setdefault(same, row.entries[0].index)
    chosen = list(best.values())[:count]
    print(f"{workdir.name}: chose {[_label(workdir, k) for k in chosen]}", flush=True)
    return chosen


def _label(workdir, number):
    from tiny_align_jax import report

    rows, _ = report.load(workdir)
    found = ((row.name, e.index) for row in rows for e in (*row.entries, *row.unfinished))
    return next(name for name, index in found if index == number)


def _sweep(workdir, config, axes, *extra, jobs=0):
    command = [f"--config={config}", f"--sweep={axes}", f"--workdir={workdir}"]
    command += [f"--jobs={jobs or _JOBS.value}", *extra, *_FLAGS.value.split()]
    if not any(flag.startswith("--score") for flag in extra):
        command.append("--score=none")
    _call("sweep", *command)


def _report(workdir, *extra):
    _call("report", f"--workdir={workdir}", *extra)


def _call(experiment, *arguments):
    """Runs an experiment; a failure is shown and does not stop what follows."""
    command = [sys.executable, "-m", f"experiments.{experiment}", *arguments]
    command.append(f"--cache_dir={_main.CACHE_DIR.value}")
    print("+ " + shlex.join(command[1:]), flush=True)
    done = subprocess.run(command, check=False)
    if done.returncode:
        print(f"{experiment} ended with {done.returncode}; going on with what is there", flush=True)


if __name__ == "__main__":
    _main.run(main)
