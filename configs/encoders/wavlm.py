"""WavLM encoders on split `so762`.

    python -m experiments.train --config=configs/encoders/wavlm.py --workdir=workdirs/wavlm

wav2vec2 with a gated relative position bias.
Their last layer is rarely the best for words: --config.encoder.layers="(9,)" keeps another, and
`configs/ablations/encoder.py` shows how to sweep them.
Weights come from the hub; the real ones were not run here (docs/models.md says how the port was verified).
"""

from configs import common, so762

SIZES = {
    "": "microsoft/wavlm-base-plus",
    "large": "microsoft/wavlm-large",
}


def get_config(arg: str = ""):
    """`arg`: '' for microsoft/wavlm-base-plus, 'large' for microsoft/wavlm-large."""
    config = so762.get_config().unlock()
    config.encoder.asset = common.pick("wavlm", arg, SIZES)
    return config.lock()
