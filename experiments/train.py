"""Trains a projector.

    python -m experiments.train --config=configs/so762.py --workdir=workdirs/so762 [--config.train.num_steps=500]

Features that the cache lacks are extracted first. The same command resumes an interrupted run at its last
checkpoint. Watch it: tensorboard --logdir=WORKDIR/tensorboard
"""

import json
from pathlib import Path

from absl import flags, logging

from experiments import _main

CONFIG = _main.define_config("config", None, "Experiment, e.g. configs/so762.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, logs and the projector.")
RESUME = flags.DEFINE_bool("resume", True, "Go on from the newest checkpoint in --workdir.")
PROGRESS = flags.DEFINE_bool("progress", True, "Show progress bars.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv):
    del argv
    from tiny_align_jax.memory import plan  # imports JAX: after --help
    from tiny_align_jax.train import run

    config = _main.resolve_config(CONFIG.value)
    _main.log_to_file(Path(str(WORKDIR.value)) / "train.log")
    plan.require_fits(config, _main.CACHE_DIR.value, ("features", "training"))
    result = run.train(
        config,
        str(WORKDIR.value),
        _main.CACHE_DIR.value,
        resume=RESUME.value,
        progress=PROGRESS.value,
    )
    print(json.dumps(result, indent=1))
    logging.info("next: python -m experiments.evaluate --workdir=%s", WORKDIR.value)


if __name__ == "__main__":
    _main.run(main)
