"""The recipe of configs/so762.py on another corpus: your recordings, CHAT transcripts, LibriSpeech, Hugging Face.

    python -m experiments.train --config=configs/corpus.py:jsonl --config.dataset.jsonl.manifest=mine.jsonl \\
        --workdir=workdirs/mine
    python -m experiments.train --config=configs/corpus.py:talkbank --config.dataset.talkbank.root=Pitt \\
        --config.split.fold=0 --workdir=workdirs/pitt_0

What each corpus is and how to get it: docs/data.md.
"""

from configs import common, so762

# Parts of each corpus. Most of TalkBank has no test set: its speakers are dealt into folds.
SPLITS = {
    "jsonl": {"validation_speakers": 1},
    "talkbank": {"train": "all", "test": "", "num_folds": 5, "fold": 0, "validation_speakers": 4},
    "librispeech": {
        "train": "train-clean-100",
        "validation": "dev-clean",
        "validation_speakers": 0,
        "test": "test-clean",
    },
    "huggingface": {"validation_speakers": 1},
}


def get_config(arg: str = ""):
    """`arg` is 'jsonl' (the default), 'talkbank', 'librispeech' or 'huggingface'."""
    name = arg or "jsonl"
    if name not in SPLITS:
        raise ValueError(f"corpus: unknown argument {arg!r}; expected {', '.join(SPLITS)}")
    config = so762.get_config().unlock()
    config.dataset = common.plugin("datasets", name)
    config.split.update(SPLITS[name])
    config.features.too_long = "skip"
    return config.lock()
