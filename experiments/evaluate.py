"""Scores a trained projector: what it hears without the LLM, what the LLM answers, and the oracle.

    python -m experiments.evaluate --workdir=workdirs/so762
    python -m experiments.evaluate --workdir=workdirs/so762 --use_llm=false --split=validation
    python -m experiments.evaluate --workdir=workdirs/so762 --snap=soft --limit=100
    python -m experiments.evaluate --workdir=workdirs/so762 --reading=rescore

Prints corpus WER, CER and ROUGE under two normalisers with bootstrap intervals, a row an age band and
sex, and the oracle (the true text's embeddings through the same prompt). Writes metrics.json,
predictions.jsonl, report.md and wer_by_group.png to the workdir; evaluations that are not the whole test
set under the defaults get names of their own, such as metrics.validation.partial.json.
"""

import os

from absl import flags

from experiments import _main

_WORKDIR = _main.define_workdir("workdir", "Folder of a finished training run.", required=True)
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation", "train"], "What to score.")
_LIMIT = flags.DEFINE_integer(
    "limit",
    0,
    "Score only so many utterances, drawn by seed: a quick look, marked partial; 0: all.",
)
_SNAP = flags.DEFINE_enum(
    "snap",
    "retokenize",
    ["retokenize", "nearest", "soft", "none"],
    "What the LLM gets in place of the audio: the read text tokenised anew, table rows of the read "
    "tokens, probability-weighted rows, or raw projector outputs.",
)
_USE_LLM = flags.DEFINE_bool(
    "use_llm", True, "Ask the LLM, too; without it only the reading counts."
)
_READING = flags.DEFINE_enum(
    "reading",
    "greedy",
    ["greedy", "beam", "rescore", "fusion"],
    "Beside the greedy reading, read with help: a beam search with n-grams, the LLM judging its best "
    "texts, or the LLM within the search. Weights: experiments.tune_reading.",
)
_READING_FILE = flags.DEFINE_string(
    "reading_file", None, "Weights of the reading; default: reading.json in the workdir."
)
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 64, "Longest answer, in tokens.")
_OUT = flags.DEFINE_string("out", None, "Where to write; default: the workdir.")
_PROGRESS = flags.DEFINE_bool("progress", True, "Show progress bars.")


def main(argv):
    del argv
    # They import JAX: after --help.
    from tiny_align_jax import decode, evaluate, evaluation_report, reading, reading_config

    config = evaluate.Config(
        split=_SPLIT.value, limit=_LIMIT.value, snap=_SNAP.value, use_llm=_USE_LLM.value
    )
    cache_dir = _main.CACHE_DIR.value
    how = reading_config.load_config(_WORKDIR.value, _READING.value, _READING_FILE.value)
    aligner = _main.load_aligner(
        _WORKDIR.value,
        need_llm=config.use_llm or how.needs_llm,
        stage="evaluation",
        new_tokens=_MAX_NEW_TOKENS.value,
    )
    evaluation = evaluate.evaluate(
        aligner,
        cache_dir,
        config,
        decode.Config(max_new_tokens=_MAX_NEW_TOKENS.value),
        reader=reading.load(aligner, cache_dir, how),
        progress=_PROGRESS.value,
    )
    out = _main.out_dir(_OUT.value, _WORKDIR.value)
    paths = evaluate.write(evaluation, out) | evaluation_report.write(evaluation, out)
    print(evaluation_report.summary(evaluation.metrics))
    print("wrote " + ", ".join(os.fspath(path) for path in paths.values()))


if __name__ == "__main__":
    _main.run(main)
