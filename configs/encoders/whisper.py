"""Whisper encoders on split `so762`.

    python -m experiments.train --config=configs/encoders/whisper.py --workdir=workdirs/whisper

Every size from tiny to large-v3 and turbo reads the same way; the packaged `whisper-tiny.en` and
`whisper-base` need no hub (configs/so762.py).
Weights come from the hub; the real ones were not run here (docs/models.md says how the port was verified).
"""

from configs import common, so762

SIZES = {
    "": "openai/whisper-small",
    "turbo": "openai/whisper-large-v3-turbo",
    "large": "openai/whisper-large-v3",
}


def get_config(arg: str = ""):
    """`arg`: '' for openai/whisper-small, 'turbo' for openai/whisper-large-v3-turbo or 'large' for openai/whisper-large-v3."""
    config = so762.get_config().unlock()
    config.encoder.asset = common.pick("whisper", arg, SIZES)
    return config.lock()
