"""The published table of readings: tuned on validation speakers, each scored once on the test speakers.

    python -m experiments.reproduce_reading --workdirs=workdirs/seed0,workdirs/seed1 --out=workdirs/reading

Every workdir (seeds of one config) is tuned alone; with two or more, the first is also tuned with the others
as members, whose probabilities are averaged. Then every method reads the test set. A part that fails is
named and skipped. Weights, metrics and logs are kept below --out as they come; the table is printed last.
"""

import json
import os
import subprocess
import sys
import time
from concurrent import futures
from pathlib import Path

from absl import flags

from experiments import _main

_WORKDIRS = flags.DEFINE_list("workdirs", None, "Finished training runs.", required=True)
_OUT = flags.DEFINE_string("out", "workdirs/reading", "Folder of everything that is written.")
_JOBS = flags.DEFINE_integer("jobs", 3, "Processes at a time.")
_METHODS = flags.DEFINE_list("methods", "beam,rescore,fusion", "What to tune and score.")
_TUNE_FLAGS = flags.DEFINE_string("tune_flags", "", "Further flags of every tuning.")
_EVALUATE_FLAGS = flags.DEFINE_string("evaluate_flags", "", "Further flags of every evaluation.")


def main(argv):
    del argv
    runs = [Path(w) for w in _WORKDIRS.value]
    rows: dict[str, tuple[Path, list[Path]]] = {run.name: (run, []) for run in runs}
    if len(runs) > 1:
        rows[f"{runs[0].name}+{len(runs) - 1}"] = (runs[0], runs[1:])
    with futures.ThreadPoolExecutor(_JOBS.value) as pool:
        done = {name: pool.submit(_row, name, *parts) for name, parts in rows.items()}
        futures.wait(done.values())
    lines = [line for name in rows for line in _lines(name)]
    header = "| run | reading | held out | test WER | ROUGE-1 | answer WER | ROUGE-1 | s/utt |"
    table = "\n".join([header, "|" + " --- |" * 8, *lines]) + "\n"
    (Path(_OUT.value) / "table.md").write_text(table)
    print(table)


def _row(name, run, members):
    """Tunes one run, then scores it with every method."""
    file = Path(_OUT.value) / name / "reading.json"
    joined = ",".join(_METHODS.value)
    flags_ = [f"--out={file}", f"--methods={joined}", *_TUNE_FLAGS.value.split()]
    flags_ += [f"--members={','.join(str(m) for m in members)}"] if members else []
    if not _call("tune_reading", name, run, *flags_):
        return
    for method in _METHODS.value:
        extra = [f"--reading={method}", f"--reading_file={file}", f"--out={file.parent}"]
        _call("evaluate", name, run, *extra, *_EVALUATE_FLAGS.value.split())


def _call(experiment, name, run, *arguments):
    folder = Path(_OUT.value) / name
    folder.mkdir(parents=True, exist_ok=True)
    common = (f"--workdir={run}", f"--cache_dir={_main.CACHE_DIR.value}", "--noprogress")
    command = [sys.executable, "-m", f"experiments.{experiment}", *common, *arguments]
    start_s = time.monotonic()
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # several share a GPU
    with (folder / "log.txt").open("a") as log:
        done = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False)
    failed = done.returncode
    state = f"FAILED ({failed}), see {folder}/log.txt" if failed else "ok"
    print(f"{experiment} {name}: {state}, {time.monotonic() - start_s:.0f} s", flush=True)
    return not failed


def _lines(name):
    """Table rows of one run: the greedy reading, then each method that was scored."""
    folder, lines = Path(_OUT.value) / name, []
    for path in sorted(folder.glob("metrics.*.json")):
        metrics = json.loads(path.read_text())
        scores = metrics["normalizers"]["whisper_english"]["scores"]
        tuned = json.loads((folder / "reading.json").read_text())
        method, reading = metrics["reading"]["method"], metrics["reading"]
        held_out = min(r["held_out"] for r in tuned["tried"] if r["config"]["method"] == method)
        if not lines:
            lines.append(
                f"| {name} | greedy | {tuned['greedy_wer']:.3f} | {_cells(scores, 'heard')} | | | |"
            )
        answer = _cells(scores, "answer") if "answer" in scores else " | "
        cells = [name, method, f"{held_out:.3f}", _cells(scores, "fused"), answer]
        lines.append(f"| {' | '.join(cells)} | {reading['seconds_per_utterance']:.3f} |")
    return lines


def _cells(scores, system):
    found = (scores[system]["all"][metric] for metric in ("wer", "rouge1"))
    return " | ".join(f"{f['value']:.3f} [{f['low']:.3f}, {f['high']:.3f}]" for f in found)


if __name__ == "__main__":
    _main.run(main)
