"""Runs the published tables that need a GPU, as many jobs side by side as memory and cores allow.

    python -m experiments.reproduce_all --out=workdirs/tables
    python -m experiments.reproduce_all --out=workdirs/tables --only=users_test,race      # and what they need
    python -m experiments.reproduce_all --out=workdirs/tables --spoken=spoken/manifest.jsonl --sentences=sentences.txt
    python -m experiments.reproduce_all --list

Jobs, their memory and their order stand in configs/tables.py. What has finished is not run again, what failed is
tried again. Logs: OUT/logs. The table of jobs is printed last; tables of results lie in the jobs' folders below OUT.
"""

import os
import sys
from pathlib import Path

from absl import flags

from experiments import _main

_OUT = flags.DEFINE_string("out", "workdirs/tables", "Folder of all results.")
_ONLY = flags.DEFINE_list("only", [], "Run only these jobs, and those they need.")
_SKIP = flags.DEFINE_list("skip", [], "Leave these jobs out, and those that need them.")
_LIST = flags.DEFINE_bool("list", False, "Show the jobs and their commands, run nothing.")
_BUDGET_S = flags.DEFINE_float("budget_s", 0.0, "Stop everything after so many seconds; 0: never.")
_SPOKEN = flags.DEFINE_string("spoken", "", "Manifest of experiments.render_speech.")
_SENTENCES = flags.DEFINE_string("sentences", "", "File of experiments.write_sentences.")


def main(argv):
    del argv
    from configs import tables
    from tiny_align_jax import jobs

    found = jobs.choose(tables.get_jobs(_SPOKEN.value, _SENTENCES.value), _ONLY.value, _SKIP.value)
    if _LIST.value:
        for job in found:
            alone = f", alone on the {job.quiet}" if job.quiet else ""
            after = ", ".join(job.after) or "nothing"
            print(f"{job.name}  ({job.gpu_gb:g} GB, {job.cores} cores{alone}; after: {after})")
            print(f"    python {job.command}")
        return
    machine = jobs.Machine.here(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    state = jobs.run(found, Path(_OUT.value), machine, os.environ, _BUDGET_S.value, _say)
    print(jobs.table(found, state))
    sys.exit(any(state.get(job.name, {}).get("status") != jobs.FINISHED for job in found))


def _say(line):
    print(line, flush=True)


if __name__ == "__main__":
    _main.run(main)
