"""The whole pipeline on two cores in minutes: a spoken corpus of our own, Whisper tiny.en, SmolLM2-135M.

    make quickstart        (runs python -m experiments.quickstart)

A local TTS voice speaks recombined sentences; no test sentence occurs in training. Numbers and times are
printed at the end and kept in the workdir. What it shows is that the parts work together: one
synthetic voice says nothing about real speech (docs/results.md does).
"""

from configs import common


def get_config(arg: str = ""):
    """`arg` is 'short' for the form that CI runs."""
    config = common.base()
    config.dataset = common.plugin(
        "datasets", "synthetic", num_train=480, num_test=60, num_speakers=4
    )
    config.split.update(validation="validation", validation_speakers=0, shared_speakers=True)
    config.encoder.window_s = 5.12  # the longest sentence takes about 4 s
    config.features.batch_size = 8
    config.augment.update(warp=0.1)
    config.projector.bridgeformer.update(
        num_layers=2, dim=256, num_heads=4, mlp_dim=512, positions="rotary"
    )
    config.optimizer.learning_rate = 1.5e-3
    config.train.update(num_steps=700, batch_size=16, num_buckets=2, validate_every=350)
    if arg == "short":
        config.dataset.synthetic.update(num_train=144, num_validation=12, num_test=24)
        config.train.update(num_steps=250, num_buckets=1, validate_every=0)
    elif arg:
        raise ValueError(f"quickstart: unknown argument {arg!r}; expected '' or 'short'")
    return config.lock()
