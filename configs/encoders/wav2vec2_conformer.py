"""wav2vec2-conformer encoders on split `so762`.

    python -m experiments.train --config=configs/encoders/wav2vec2_conformer.py --workdir=workdirs/wav2vec2_conformer

Relative positions, or rotary ones.
Their last layer is rarely the best for words: --config.encoder.layers="(9,)" keeps another, and
`configs/ablations/encoder.py` shows how to sweep them.
Weights come from the hub; the real ones were not run here (docs/models.md says how the port was verified).
"""

from configs import common, so762

SIZES = {
    "": "facebook/wav2vec2-conformer-rel-pos-large",
    "rope": "facebook/wav2vec2-conformer-rope-large",
}


def get_config(arg: str = ""):
    """`arg`: '' for facebook/wav2vec2-conformer-rel-pos-large, 'rope' for facebook/wav2vec2-conformer-rope-large."""
    config = so762.get_config().unlock()
    config.encoder.asset = common.pick("wav2vec2_conformer", arg, SIZES)
    return config.lock()
