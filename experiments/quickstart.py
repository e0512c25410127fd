"""Everything once, on two cores: weights, a spoken corpus, features, training, evaluation, one answer.

    python -m experiments.quickstart [--short] [--workdir=workdirs/quickstart]

Each stage is the command that a user would type (it is printed), in a process of its own, so that times and
peak memory are those of the stage. Exits with 1 unless the trained projector reads the test sentences
with a word error rate of at most 0.5 and below half of the untrained projector's.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from absl import flags

from experiments import _main

_WORKDIR = flags.DEFINE_string("workdir", "workdirs/quickstart", "Folder of the run.")
_SHORT = flags.DEFINE_bool("short", False, "A smaller corpus and fewer steps, as in CI.")
_SEED = flags.DEFINE_integer("seed", 0, "Picks the recording that is answered, before any result.")

_MAX_WER = 0.5
_CONFIG = "configs/quickstart.py"


def main(argv):
    del argv
    workdir = Path(_WORKDIR.value)
    config = f"{_CONFIG}:short" if _SHORT.value else _CONFIG
    untrained = workdir / "untrained"
    start_s = time.monotonic()
    _run("fetch_assets", "--assets=quickstart")
    _run("extract_features", f"--config={config}")
    _run(
        "train",
        f"--config={config}",
        f"--workdir={untrained}",
        "--config.train.num_steps=0",
        "--noresume",
    )
    _run("train", f"--config={config}", f"--workdir={workdir}", "--noresume")
    _run("evaluate", f"--workdir={untrained}", "--use_llm=false")
    _run("evaluate", f"--workdir={workdir}")
    audio, truth = _pick(workdir)
    print(
        f"\nOne test recording, picked by seed {_SEED.value}: {audio}\ntruth:  {truth}", flush=True
    )
    _run("transcribe", f"--workdir={workdir}", f"--audio={audio}")
    sys.exit(_verdict(workdir, untrained, time.monotonic() - start_s))


def _run(experiment: str, *arguments: str) -> None:
    """Runs a stage and says what it cost; a failed stage ends the quickstart with its exit code."""
    command = [
        sys.executable,
        "-m",
        f"experiments.{experiment}",
        *arguments,
        f"--cache_dir={_main.CACHE_DIR.value}",
    ]
    print(f"\n$ python {' '.join(command[1:])}", flush=True)
    start_s = time.monotonic()
    done = subprocess.run(command, check=False)
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    print(
        f"[{experiment}: {time.monotonic() - start_s:.0f} s; largest stage so far "
        f"{peak_mb:.0f} MB]",
        flush=True,
    )
    if done.returncode:
        sys.exit(done.returncode)


def _pick(workdir: Path) -> tuple[str, str]:
    """Audio file and transcript of one test utterance; the choice does not look at predictions."""
    rows = [json.loads(line) for line in (workdir / "predictions.jsonl").open()]
    row = rows[int(np.random.default_rng(_SEED.value).integers(len(rows)))]
    return row["audio"], row["reference"]


def _verdict(workdir: Path, untrained: Path, wall_s: float) -> int:
    trained_wer = _wer(workdir / "metrics.json")
    untrained_wer = _wer(untrained / "metrics.no_llm.json")
    result = json.loads((workdir / "train_result.json").read_text())
    good = trained_wer <= _MAX_WER and trained_wer < untrained_wer / 2
    print(
        f"\nnearest WER {trained_wer:.3f} trained, {untrained_wer:.3f} untrained (reach: at most "
        f"{_MAX_WER} and below half of untrained): {'reached' if good else 'NOT REACHED'}\n"
        f"training: {result['train_s']:.0f} s of steps, {result['compile_s']:.0f} s to compile, peak "
        f"{result['peak_rss_mb']:.0f} MB; everything: {wall_s:.0f} s\n"
        f"look at {workdir}/report.md, {workdir}/wer_by_group.png and "
        f"`tensorboard --logdir={workdir}/tensorboard`"
    )
    return 0 if good else 1


def _wer(path: Path) -> float:
    scores = json.loads(path.read_text())["normalizers"]["whisper_english"]["scores"]
    return scores["heard"]["all"]["wer"]["value"]


if __name__ == "__main__":
    _main.run(main)
