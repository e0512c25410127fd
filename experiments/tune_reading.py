"""Fits the weights of reading with the LLM's help, on validation speakers only.

    python -m experiments.tune_reading --workdir=workdirs/so762
    python -m experiments.evaluate --workdir=workdirs/so762 --reading=rescore

Reads the validation speakers with a wide beam, asks the n-gram model and the LLM about every candidate and
writes the weights with the fewest word errors to reading.json, which evaluate and transcribe then use.
--members names further workdirs (other seeds, say) whose probabilities are averaged with this one's.
"""

import dataclasses
import json
from pathlib import Path

from absl import flags

from experiments import _main

_WORKDIR = _main.define_workdir("workdir", "Folder of a finished training run.", required=True)
_METHODS = flags.DEFINE_list("methods", "beam,rescore,fusion", "What to tune.")
_CONTEXTS = flags.DEFINE_list(
    "contexts", "0,8,32", "Numbers of training sentences that the LLM sees before a text."
)
_NUM_BEST = flags.DEFINE_integer("num_best", 32, "Candidates an utterance.")
_MEMBERS = flags.DEFINE_list("members", "", "Workdirs of further projectors to average with.")
_NGRAM_ORDER = flags.DEFINE_integer("ngram_order", 3, "Longest n-gram of training text.")
_NGRAM_TEXTS = flags.DEFINE_string(
    "ngram_texts", "", "Further sentences to count, one a line; never test text."
)
_LIMIT = flags.DEFINE_integer("limit", 0, "Tune on so many utterances only, drawn by seed; 0: all.")
_OUT = flags.DEFINE_string("out", None, "File to write; default: reading.json in the workdir.")
_PROGRESS = flags.DEFINE_bool("progress", True, "Show a progress bar while features are extracted.")


def main(argv):
    del argv
    # They import JAX: after --help.
    from tiny_align_jax import evaluate, reading, reading_config, reading_tune
    from tiny_align_jax.aligner import Aligner

    config = reading_tune.Config(
        methods=tuple(_METHODS.value),
        contexts=tuple(int(c) for c in _CONTEXTS.value),
        num_best=_NUM_BEST.value,
        members=tuple(_MEMBERS.value),
        ngram_order=_NGRAM_ORDER.value,
        ngram_texts=_NGRAM_TEXTS.value,
    )
    cache_dir = _main.CACHE_DIR.value
    need_llm = set(config.methods) != {"beam"}
    aligner = Aligner.load(_WORKDIR.value, cache_dir, need_llm=need_llm)
    aligner = _main.with_local_data(aligner)
    members = [Aligner.load(m, cache_dir, need_llm=False) for m in config.members]
    what = evaluate.Config(split="validation", limit=_LIMIT.value, use_llm=False)
    utterances, frames, *_ = evaluate.frames_of(aligner, cache_dir, what, progress=_PROGRESS.value)
    heard, _ = evaluate.hear_all(aligner, frames, what)
    greedy = reading_tune.corpus_wer(config, utterances, heard)
    texts = reading.transcripts(aligner)
    show = lambda row: print(reading_tune.line(row), flush=True)  # noqa: E731
    rows = reading_tune.tune(aligner, frames, utterances, texts, config, members, show)
    about = {"num_utterances": len(utterances), "tuning": dataclasses.asdict(config)}
    path = Path(_OUT.value or _main.out_dir(None, _WORKDIR.value) / reading_config.FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(reading_tune.report(rows, greedy, about), indent=1) + "\n")
    print(reading_tune.markdown(rows, greedy))
    print(f"wrote {path}")


if __name__ == "__main__":
    _main.run(main)
