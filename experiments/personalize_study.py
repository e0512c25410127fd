"""Which way of adapting to a user works: all methods on simulated users, the chosen ones on test users.

    python -m experiments.train --config=configs/so762.py --workdir=workdirs/dev \\
        --config.encoder.window_s=12.8 --config.features.too_long=skip --config.split.validation_speakers=30
    python -m experiments.train --config=configs/so762.py --workdir=workdirs/base \\
        --config.encoder.window_s=12.8 --config.features.too_long=skip
    python -m experiments.personalize_study --dev_base=workdirs/dev --base=workdirs/base --workdir=workdirs/study

The first base is trained without 30 speakers, who are the simulated users; nothing is chosen on the test
speakers of the second. Without --base or --dev_base one phase runs alone, without both the report is written
anew. The first phase may be divided among processes by --methods, each with its --workdir; --chosen names
these for the second. Writes study.json as it goes, chosen.json between the phases, report.md with pictures last.
"""

import json
from pathlib import Path

from absl import flags

from experiments import _main

_DEV = _main.define_workdir("dev_base", "Workdir of a base whose validation speakers choose.")
_BASE = _main.define_workdir("base", "Workdir of the base whose test speakers are scored.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder to write to.", required=True)
_CHOSEN = flags.DEFINE_list("chosen", [], "Folders of first phases; default: --workdir.")
_METHODS = flags.DEFINE_list("methods", [], "Of configs/personalize.py; default: all that train.")
_FACTORS = flags.DEFINE_list("factors", ["1", "0.3", "3"], "Times each method's learning rate.")
_BUDGET_S = flags.DEFINE_float("budget_s", 90, "Begin no further point after so many seconds.")
_JOBS = flags.DEFINE_integer(
    "jobs_at_once", 0, "Copies that share a step; 0: 12 on an accelerator (10 GB), 2 on a CPU."
)
_STEPS = flags.DEFINE_integer("steps_per_checkpoint", 8, "Updates between two of 5 checkpoints.")
_FOLDS = flags.DEFINE_integer("folds", 3, "Folds of six test utterances each.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds on the test users.")
_AUDIO = flags.DEFINE_bool("encoder", True, "Also methods that reach into the encoder.")
_LLM = flags.DEFINE_bool("llm", True, "Also read with the LLM's help.")
_USERS = flags.DEFINE_integer("max_users", 0, "Only the first so many users; 0 for all.")
_NUM_BEST = flags.DEFINE_integer("num_best", 32, "Texts of an utterance that the LLM judges.")
_GRAMS = flags.DEFINE_string("ngram_texts", "", "Sentences whose n-grams steer the lists of texts.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of projector and encoder.")


def main(argv):
    del argv
    import jax

    from configs import personalize as configs
    from tiny_align_jax.adapt import fit, study, study_choose, study_final, study_report, study_run
    from tiny_align_jax.aligner import Aligner
    from tiny_align_jax.data import augment

    names = _METHODS.value or [
        n for n in configs.METHODS if _AUDIO.value or not n.startswith("encoder")
    ]
    sections = {n: json.loads(configs.get_config(n).to_json_best_effort()) for n in names}
    points = study.points_of(sections, [float(f) for f in _FACTORS.value])
    sizes = fit.Config(
        steps_per_checkpoint=_STEPS.value,
        jobs_at_once=_JOBS.value or (2 if jax.default_backend() == "cpu" else 12),
        augment=augment.Config(warp=0.1),
    )
    config = study_run.Config(
        budget_s=_BUDGET_S.value,
        folds=tuple(range(_FOLDS.value)),
        seeds=tuple(range(_SEEDS.value)),
        dtype=_DTYPE.value,
        max_users=_USERS.value,
        num_best=_NUM_BEST.value,
        ngram_texts=_GRAMS.value,
    )
    cache_dir, folder = _main.CACHE_DIR.value, Path(_WORKDIR.value)

    def ground(workdir, role, wanted, sizes):
        base = _main.with_local_data(Aligner.load(workdir, cache_dir, need_llm=_LLM.value))
        reaches = any(p.method.needs_encoder for p in wanted)
        return study_run.prepare(base, cache_dir, role, config, sizes, reaches)

    if _DEV.value:
        study_choose.run(ground(_DEV.value, "validation", points, sizes), points, config, folder)
    if _BASE.value:
        chosen = study_choose.join(_CHOSEN.value or [folder])
        sizes, choice = study_choose.sizes(chosen, sizes), study_final.Choice.of(chosen, points)
        wanted = [choice.point] if choice.point else []
        study_final.run(ground(_BASE.value, "test", wanted, sizes), choice, config, folder)
    print(study_report.write(folder))


if __name__ == "__main__":
    _main.run(main)
