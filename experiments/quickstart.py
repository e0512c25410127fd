"""Everything once, on two cores: a projector of one's own, and a published one that gets to know a user.

    python -m experiments.quickstart [--short] [--workdir=workdirs/quickstart]

First the whole pipeline from nothing: weights, a spoken corpus, features, training, evaluation. Then the
published base projector (published/, trained on real speech), which is adapted to one speaker of that
corpus from 14 sentences, is scored on sentences that it never saw, before and after, and answers a
recording. Each stage is the command that a user would type (it is printed), in a process of its own, so
that times and peak memory are those of the stage. Exits with 1 unless the projector trained here
reads the test sentences with a word error rate of at most 0.5 and below half of the untrained one's.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from experiments import _main

_WORKDIR = flags.DEFINE_string("workdir", "workdirs/quickstart", "Folder of the run.")
_SHORT = flags.DEFINE_bool("short", False, "A smaller corpus and fewer steps, as in CI.")
_SEED = flags.DEFINE_integer("seed", 0, "Picks the recording that is answered, before any result.")
_BASE = _main.define_workdir(
    "base",
    "Base projector for the user; default: the published one, if there is one, else this run's.",
)

_MAX_WER = 0.5
_CONFIG = "configs/quickstart.py"
_ENCODER = "whisper-tiny.en"
_NUM_SENTENCES = 14  # that the user says


def main(argv):
    del argv
    workdir = Path(_WORKDIR.value)
    config = f"{_CONFIG}:short" if _SHORT.value else _CONFIG
    untrained = workdir / "untrained"
    tag = ".no_llm" if _SHORT.value else ""  # asking the LLM takes half a minute
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
    _run("evaluate", f"--workdir={workdir}", f"--use_llm={str(not _SHORT.value).lower()}")
    row = _pick(workdir / f"predictions{tag}.jsonl")
    manifest = _say(workdir, row["speaker"])
    published = [p.name for p in _main.published_bases() if p.name.startswith(_ENCODER)]
    base, users = _BASE.value or [*published, workdir][0], f"--users_dir={workdir / 'users'}"
    _run(
        "personalize",
        f"--base={base}",
        "--user=quickstart",
        f"--manifest={manifest}",
        f"--json={workdir / 'personalize.json'}",
        f"--config.fit.steps_per_checkpoint={4 if _SHORT.value else 10}",
        users,
    )
    print(
        f"\nOne test recording of {row['speaker']}, picked by seed {_SEED.value}: {row['audio']}\n"
        f"truth:           {row['reference']}\ntrained here:    {row['heard']}",
        flush=True,
    )
    _run("transcribe", f"--workdir={base}", "--user=quickstart", users, f"--audio={row['audio']}")
    metrics = (workdir / f"metrics{tag}.json", untrained / "metrics.no_llm.json")
    sys.exit(_verdict(workdir, metrics, time.monotonic() - start_s))


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
    start_s, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=False)
    wall_s, after = time.monotonic() - start_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"[{experiment}: {wall_s:.0f} s, {cpu_s:.0f} s of all cores; largest stage so far "
        f"{after.ru_maxrss / 1e3:.0f} MB]",
        flush=True,
    )
    if done.returncode:
        sys.exit(done.returncode)


def _pick(predictions: Path) -> dict[str, str]:
    """One test utterance; the choice does not look at predictions."""
    rows = [json.loads(line) for line in predictions.open()]
    return rows[int(np.random.default_rng(_SEED.value).integers(len(rows)))]


def _say(workdir: Path, speaker: str) -> Path:
    """A manifest of what a user would record: 14 sentences to learn from, and the test's to score."""
    from tiny_align_jax.train import corpus

    split = corpus.read_split(json.loads((workdir / "config.json").read_text()))
    parts = {"train": split.train, "test": (*split.validation, *split.test)}
    said = {role: [u for u in part if u.speaker_id == speaker] for role, part in parts.items()}
    said["train"] = said["train"][:_NUM_SENTENCES]
    manifest = workdir / "user.jsonl"
    with manifest.open("w") as out:
        for role, utterances in said.items():
            for u in utterances:
                row = {"audio": u.audio_path, "text": u.text, "speaker": speaker, "split": role}
                out.write(json.dumps(row) + "\n")
    return manifest


def _verdict(workdir: Path, metrics: Sequence[Path], wall_s: float) -> int:
    trained_wer, untrained_wer = (
        _wer(json.loads(path.read_text())["normalizers"], "heard") for path in metrics
    )
    result = json.loads((workdir / "train_result.json").read_text())
    user = json.loads((workdir / "personalize.json").read_text())
    before, after = (_wer(user["scores"], name) for name in ("before", "after"))
    good = trained_wer <= _MAX_WER and trained_wer < untrained_wer / 2
    print(
        f"\nnearest WER {trained_wer:.3f} trained, {untrained_wer:.3f} untrained (reach: at most "
        f"{_MAX_WER} and below half of untrained): {'reached' if good else 'NOT REACHED'}\n"
        f"base projector on one speaker's {len(user['references'])} sentences: WER {before:.3f} before, "
        f"{after:.3f} after learning from {_NUM_SENTENCES}\n"
        f"training: {result['train_s']:.0f} s of steps, {result['compile_s']:.0f} s to compile, peak "
        f"{result['peak_rss_mb']:.0f} MB; everything: {wall_s:.0f} s\n"
        f"look at {workdir}/report*.md, {workdir}/wer_by_group*.png and "
        f"`tensorboard --logdir={workdir}/tensorboard`"
    )
    return 0 if good else 1


def _wer(by_normalizer: dict, system: str) -> float:
    return by_normalizer["whisper_english"]["scores"][system]["all"]["wer"]["value"]


if __name__ == "__main__":
    _main.run(main)
