"""Predicts what a config takes in memory, stage by stage, and the largest batch and length that fit.

    python -m experiments.plan_memory --config=configs/so762.py --device=orin_8gb
    python -m experiments.plan_memory --config=configs/so762.py --device=pi5_8gb \\
        --config.llm.asset=Llama-3.2-1B --stages=generation
    python -m experiments.plan_memory --config=configs/so762.py --config.device.budget_bytes=4000000000

Nothing is run, loaded or fetched: a model is a name of docs/models.md ('Llama-3.2-3B', 'whisper-base'), a
hub id of one of these, or a folder with a config.json. Temporaries come from compiling the programs of
each stage for shapes, so the first answer takes a minute or two. `extract_features`, `train`, `evaluate`,
`transcribe`, `personalize` make the same check before they load anything, wherever `config.device.budget_bytes` is set. How good the predictions are:
docs/edge.md.
"""

from absl import flags

from experiments import _main

CONFIG = _main.define_config("config", None, "Experiment, e.g. configs/so762.py.")
STAGES = flags.DEFINE_list(
    "stages", [], "Some of features, training, personalisation, reading, generation, evaluation."
)
READ_CORPUS = flags.DEFINE_bool(
    "read_corpus", False, "Count utterances and table rows in the corpus instead of assuming them."
)
LARGEST = flags.DEFINE_bool("largest", True, "Search the largest batch and length that fit.")
flags.mark_flag_as_required("config")


def main(argv):
    del argv
    from tiny_align_jax.memory import budget, plan  # import JAX: after --help

    config = _main.resolve_config(CONFIG.value)
    made = plan.make(config, _main.CACHE_DIR.value)
    if READ_CORPUS.value:
        made = plan.read_corpus(made, _main.CACHE_DIR.value)
    names = STAGES.value or list(plan.STAGES)
    stages = [made.stage(name) for name in names]
    print(budget.table(stages, made.device))
    print(f"\n{made.assumptions()}")
    if not (LARGEST.value and made.device.budget_bytes):
        return
    print(f"\nlargest that fits {budget.megabytes(made.device.budget_bytes)}, all else as above:")
    for name, stage in zip(names, stages, strict=True):
        print(f"  {stage.name}: {made.describe_largest(name)}", flush=True)


if __name__ == "__main__":
    _main.run(main)
