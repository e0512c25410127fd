"""The published table on split `so762`: our objective, the paper's beside it, the first recipe; 3 seeds.

    python -m experiments.reproduce_so762 --workdir=workdirs/table [--jobs=6]

First our seed 0 alone, so that its seconds are a machine's own; then everything else, `--jobs` processes at a
time. The paper's objective gets a search of its own on validation speakers, then three seeds. Test
speakers are scored once, at the end. Prints the table last; docs/results.md keeps it.
"""

import json
import os
import subprocess
import sys
import time
from concurrent import futures
from pathlib import Path

import numpy as np
from absl import flags

from experiments import _main

_WORKDIR = flags.DEFINE_string("workdir", "workdirs/so762_table", "Folder of all runs.")
_JOBS = flags.DEFINE_integer("jobs", 6, "Processes at a time after the first run.")
_TRAIN_FLAGS = flags.DEFINE_string("train_flags", "", "Further flags of every training run.")
_EVALUATE_FLAGS = flags.DEFINE_string("evaluate_flags", "", "Further flags of every evaluation.")

_PAPER = (
    "--config.objective.name=embedlink",
    "--config.projector.bridgeformer.pooling=adaptive",
    "--config.projector.bridgeformer.positions=none",
)
# The search that the paper's objective gets: learning rate, casting, number of tokens T.
_PAPER_SEARCH = {
    "pad16_5e-4": (),
    "pad16_1e-3": ("--config.optimizer.learning_rate=1e-3",),
    "pad24_5e-4": ("--config.projector.bridgeformer.num_tokens=24",),
    "stretch24_5e-4": (
        "--config.projector.bridgeformer.num_tokens=24",
        "--config.objective.embedlink.cast=stretch",
    ),
    "pad16_5e-4_warp": ("--config.augment.warp=0.1",),
}
_FIRST_RECIPE = (
    "--config.projector.bridgeformer.positions=none",
    "--config.vocabulary.kind=full",
    "--config.objective.embedlink_ctc.logits_dtype=float16",
    "--config.train.num_steps=5000",
)


# Every encoder and LLM whose weights can be had, one seed each; base + SmolLM2 is row one.
_OTHERS = {
    "whisper-tiny.en + smollm2-135m": ("--config.encoder.asset=whisper-tiny.en",),
    "whisper-base + gemma-3-270m": ("--config.llm.asset=gemma-3-270m",),
    "whisper-tiny.en + gemma-3-270m": (
        "--config.encoder.asset=whisper-tiny.en",
        "--config.llm.asset=gemma-3-270m",
    ),
}


def main(argv):
    del argv
    folder = Path(_WORKDIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    _train(folder / "ctc_seed0")
    with futures.ThreadPoolExecutor(_JOBS.value) as pool:
        ctc = [folder / f"ctc_seed{s}" for s in range(3)]
        jobs = [pool.submit(_train, ctc[s], f"--config.seed={s}") for s in (1, 2)]
        first = pool.submit(_train, folder / "first_recipe", *_FIRST_RECIPE)
        others = {
            label: pool.submit(_train, folder / label.replace(" + ", "_"), *extra)
            for label, extra in _OTHERS.items()
        }
        search = {
            name: pool.submit(_train, folder / f"search_{name}", *_PAPER, *extra)
            for name, extra in _PAPER_SEARCH.items()
        }
        scored = [pool.submit(_evaluate, ctc[0])]
        found = {name: _validation_wer(job.result()) for name, job in search.items()}
        print("paper's objective, validation WER:", json.dumps(found), flush=True)
        best = min(found, key=lambda name: found[name])
        paper = [folder / f"search_{best}"]
        for seed in (1, 2):
            run = folder / f"paper_seed{seed}"
            paper.append(run)
            jobs.append(
                pool.submit(_train, run, *_PAPER, *_PAPER_SEARCH[best], f"--config.seed={seed}")
            )
        futures.wait([*jobs, first, *others.values()])
        other_runs = {label: [job.result()] for label, job in others.items()}
        rest = [*ctc[1:], folder / "first_recipe", *paper, *(r[0] for r in other_runs.values())]
        scored += [pool.submit(_evaluate, run) for run in rest]
        futures.wait(scored)
    rows = {
        "embedlink_ctc (ours)": ctc,
        f"embedlink (the paper's, {best})": paper,
        "first recipe": [folder / "first_recipe"],
        **other_runs,
    }
    table = _table(rows)
    (folder / "table.md").write_text(table)
    print(table)


def _train(run: Path, *arguments: str) -> Path:
    arguments = ("--config=configs/so762.py", f"--workdir={run}", "--noprogress", *arguments)
    return _call("train", run, *arguments, *_TRAIN_FLAGS.value.split())


def _evaluate(run: Path) -> Path:
    arguments = (f"--workdir={run}", "--noprogress", *_EVALUATE_FLAGS.value.split())
    return _call("evaluate", run, *arguments)


def _call(experiment: str, run: Path, *arguments: str) -> Path:
    command = [sys.executable, "-m", f"experiments.{experiment}", *arguments]
    command.append(f"--cache_dir={_main.CACHE_DIR.value}")
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # several share a GPU
    start_s = time.monotonic()
    run.mkdir(parents=True, exist_ok=True)
    with (run / f"{experiment}.out").open("w") as log:
        done = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False)
    state = "ok" if done.returncode == 0 else f"FAILED ({done.returncode}), see {run}"
    print(f"{experiment} {run.name}: {state}, {time.monotonic() - start_s:.0f} s", flush=True)
    return run


def _validation_wer(run: Path) -> float:
    path = run / "train_result.json"
    return json.loads(path.read_text())["validation"]["wer"] if path.is_file() else float("inf")


def _table(rows: dict[str, list[Path]]) -> str:
    names = ("heard wer", "heard rouge1", "answer rouge1", "oracle rouge1")
    lines = ["| row | seeds | train s | compile s | peak MB | " + " | ".join(names) + " |"]
    lines.append("|" + " --- |" * (len(names) + 5))
    for label, runs in rows.items():
        done = [r for r in runs if (r / "metrics.json").is_file()]
        cells = [label, str(len(done))]
        results = [json.loads((r / "train_result.json").read_text()) for r in done]
        cells += [", ".join(f"{r[key]:.1f}" for r in results) for key in ("train_s", "compile_s")]
        cells.append(", ".join(f"{r['peak_device_mb'] or r['peak_rss_mb']:.0f}" for r in results))
        cells += [_cell(done, *name.split()) for name in names]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(runs: list[Path], system: str, metric: str) -> str:
    """Mean over seeds with their spread, and seed 0's bootstrap interval over speakers."""
    found = []
    for run in runs:
        scores = json.loads((run / "metrics.json").read_text())["normalizers"]["whisper_english"]
        found.append(scores["scores"].get(system, {}).get("all", {}).get(metric))
    if not found or found[0] is None:
        return ""
    values = [f["value"] for f in found]
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread} [{found[0]['low']:.3f}, {found[0]['high']:.3f}]"


if __name__ == "__main__":
    _main.run(main)
