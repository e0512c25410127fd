"""wav2vec2 encoders on split `so762`.

    python -m experiments.train --config=configs/encoders/wav2vec2.py --workdir=workdirs/wav2vec2

Base has group-norm convolutions and post-norm layers, large layer norm and pre-norm layers.
Their last layer is rarely the best for words: --config.encoder.layers="(9,)" keeps another, and
`configs/ablations/encoder.py` shows how to sweep them.
Weights come from the hub; the real ones were not run here (docs/models.md says how the port was verified).
"""

from configs import common, so762

SIZES = {
    "": "facebook/wav2vec2-base",
    "large": "facebook/wav2vec2-large-lv60",
}


def get_config(arg: str = ""):
    """`arg`: '' for facebook/wav2vec2-base, 'large' for facebook/wav2vec2-large-lv60."""
    config = so762.get_config().unlock()
    config.encoder.asset = common.pick("wav2vec2", arg, SIZES)
    return config.lock()
