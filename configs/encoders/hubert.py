"""HuBERT encoders on split `so762`.

    python -m experiments.train --config=configs/encoders/hubert.py --workdir=workdirs/hubert

The family of wav2vec2 with other training.
Their last layer is rarely the best for words: --config.encoder.layers="(9,)" keeps another, and
`configs/ablations/encoder.py` shows how to sweep them.
Weights come from the hub; the real ones were not run here (docs/models.md says how the port was verified).
"""

from configs import common, so762

SIZES = {
    "": "facebook/hubert-base-ls960",
    "large": "facebook/hubert-large-ll60k",
}


def get_config(arg: str = ""):
    """`arg`: '' for facebook/hubert-base-ls960, 'large' for facebook/hubert-large-ll60k."""
    config = so762.get_config().unlock()
    config.encoder.asset = common.pick("hubert", arg, SIZES)
    return config.lock()
