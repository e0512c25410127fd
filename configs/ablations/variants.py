"""Which distorted copies of the training recordings help? Every copy is encoded once and cached.

python -m experiments.sweep --config=configs/ablations/variants.py:screen --sweep=variants --workdir=workdirs/variants
"""

from configs.ablations import _base

sweep_seed = _base.sweep_seed

SPEED = ("speed:0.9", "speed:1.1")
ROOM = ("pink:15", "reverb:0.4")


def get_config(arg: str = ""):
    """`arg` as for every ablation: '', 'screen' or 'tiny'."""
    config = _base.get_config(arg)
    # A slowed copy of the longest recordings is longer than the encoder's window.
    config.unlock().features.too_long = "skip"
    return config.lock()


def sweep_variants():
    """None, speed, a child's and a giant's voice, noise and room, and all."""
    yield {"features.variants": (), "label": "none"}
    yield {"features.variants": SPEED, "label": "speed 0.9, 1.1"}
    yield {"features.variants": ("speed:0.8", *SPEED, "speed:1.2"), "label": "speed 0.8 to 1.2"}
    yield {"features.variants": ROOM, "label": "noise, room"}
    yield {"features.variants": (*SPEED, *ROOM), "label": "speed, noise, room"}
