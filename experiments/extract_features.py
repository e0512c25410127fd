"""Runs the frozen encoder over a config's corpus and keeps its frames in the feature cache.

    python -m experiments.extract_features --config=configs/so762.py [--config.encoder.window_s=20.48]

Training and evaluation extract what they lack by themselves; this does it beforehand, for every split, and
reports speed and skipped recordings. Interrupted, the same command goes on where it was.
"""

from absl import flags

from experiments import _main

CONFIG = _main.define_config("config", None, "Experiment, e.g. configs/so762.py.")
PROGRESS = flags.DEFINE_bool("progress", True, "Show a progress bar.")
flags.mark_flag_as_required("config")


def main(argv):
    del argv
    from tiny_align_jax.memory import plan  # imports JAX: after --help
    from tiny_align_jax.train import corpus

    config = _main.resolve_config(CONFIG.value)
    plan.require_fits(config, _main.CACHE_DIR.value, ("features",))
    split = corpus.read_split(config)
    utterances = [*split.train, *split.validation, *split.test]
    features, report, _ = corpus.features(config, _main.CACHE_DIR.value, utterances, PROGRESS.value)
    print(f"{report}\nin {features.folder}")


if __name__ == "__main__":
    _main.run(main)
