"""Scores the cascade that needs no alignment: Whisper's own decoder, then the LLM asked to repeat its text.

    python -m experiments.cascade --config=configs/so762.py --workdir=workdirs/cascade
    python -m experiments.cascade --config=configs/so762.py --workdir=workdirs/cascade_tiny \\
        --config.encoder.asset=whisper-tiny.en --use_llm=false

Needs PyTorch (pip install -e .[parity]). Scores the same utterances with the same code as
experiments.evaluate and writes the same files (metrics.json, predictions.jsonl, report.md), so that both can be
compared utterance by utterance. Interrupted, the same command goes on where it stopped.
"""

import os

from absl import flags

from experiments import _main

_CONFIG = _main.define_config("config", None, "Experiment, e.g. configs/so762.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for transcripts and scores.")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation", "train"], "What to score.")
_LIMIT = flags.DEFINE_integer("limit", 0, "Only so many utterances, drawn by seed; 0: all.")
_USE_LLM = flags.DEFINE_bool("use_llm", True, "Ask the LLM to repeat the text, too.")
_DEVICE = flags.DEFINE_string("torch_device", "cpu", "Torch device, e.g. cuda.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "float16", "bfloat16"], "Of the models.")
_FALLBACK = flags.DEFINE_bool(
    "fallback",
    False,
    "Decode loops and guesses anew at rising temperatures, as Whisper's program does.",
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Recordings a call.")
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", 64, "Longest answer of the LLM, in tokens."
)
_PROGRESS = flags.DEFINE_bool("progress", True, "Show progress bars.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv):
    del argv
    import transformers

    from third_party.torch_baseline import cascade  # imports torch: after --help
    from tiny_align_jax import evaluate, evaluation_report

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    settings = cascade.Config(
        device=_DEVICE.value,
        dtype=_DTYPE.value,
        batch_size=_BATCH_SIZE.value,
        fallback=_FALLBACK.value,
        use_llm=_USE_LLM.value,
        max_new_tokens=_MAX_NEW_TOKENS.value,
    )
    selection = evaluate.Config(split=_SPLIT.value, limit=_LIMIT.value, use_llm=_USE_LLM.value)
    workdir = str(_WORKDIR.value)
    evaluation = cascade.run(
        _main.resolve_config(_CONFIG.value),
        workdir,
        _main.CACHE_DIR.value,
        settings,
        selection,
        progress=_PROGRESS.value,
    )
    paths = evaluate.write(evaluation, workdir) | evaluation_report.write(evaluation, workdir)
    print(evaluation_report.summary(evaluation.metrics))
    print("wrote " + ", ".join(os.fspath(path) for path in paths.values()))


if __name__ == "__main__":
    _main.run(main)
