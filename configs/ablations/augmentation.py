"""Which augmentation of cached frames helps?

python -m experiments.sweep --config=configs/ablations/augmentation.py:screen --sweep=augmentation --workdir=workdirs/augmentation
"""

from configs.ablations import _base

get_config, sweep_seed = _base.get_config, _base.sweep_seed

NOTHING = {
    "augment.time_masks": 0,
    "augment.channel_mask_fraction": 0.0,
    "augment.warp": 0.0,
    "augment.noise": 0.0,
}


def sweep_augmentation():
    """None, each alone, and the masks with each of the others."""
    masks = {"augment.time_masks": 2, "augment.channel_mask_fraction": 0.15}
    yield NOTHING | {"label": "none"}
    yield NOTHING | {"augment.time_masks": 2, "label": "time masks"}
    yield NOTHING | {"augment.channel_mask_fraction": 0.15, "label": "channel masks"}
    yield NOTHING | {"augment.warp": 0.1, "label": "speed"}
    yield NOTHING | {"augment.noise": 0.2, "label": "noise"}
    yield NOTHING | masks | {"label": "masks"}
    yield NOTHING | masks | {"augment.warp": 0.1, "label": "masks, speed"}
    yield NOTHING | masks | {"augment.noise": 0.2, "label": "masks, noise"}
