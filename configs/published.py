"""The base projectors under published/: real speech and synthetic speech in one run, half of the draws each.

The synthetic corpus is made as configs/synthetic_pretraining.py says (sentences.txt, spoken/); then
    python -m experiments.train --config=configs/published.py:tiny --workdir=workdirs/tiny \
        --config.mixture.dataset.jsonl.manifest=spoken/manifest.jsonl
    python -m experiments.train --config=configs/published.py:base --workdir=workdirs/base \
        --config.mixture.dataset.jsonl.manifest=spoken/manifest.jsonl --config.vocabulary.texts=sentences.txt

Both stay under 5 million parameters, so that a file in float16 stays under 10 MB.
"""

from configs import synthetic_pretraining


def get_config(arg: str = ""):
    """`arg`: 'base' (Whisper base, one GPU) or 'tiny' (Whisper tiny.en, two cores; the default)."""
    if arg not in ("", "base", "tiny"):
        raise ValueError(f"published: unknown argument {arg!r}; expected base or tiny")
    is_base = arg == "base"
    config = synthetic_pretraining.get_config("mixture" if is_base else "mixture_tiny")
    config.unlock()
    config.projector.bridgeformer.update(dim=256, num_heads=4, mlp_dim=1024)
    if is_base:
        config.features.batch_size = 64
        config.train.num_steps = 6000
    else:
        config.split.train_speakers = 0  # all of them
        config.mixture.limit = 4000  # encoding an utterance takes 0.1 s of one core
        config.train.update(num_steps=4000, num_buckets=4, checkpoint_every=500)
    return config.lock()
