"""wav2vec2: base (group norm, post-norm layers) and large (layer norm, pre-norm layers).

Pre-trained and CTC-fine-tuned checkpoints; a fine-tuned one's head is left out by `PARAM_MAP` and
read by `CTC_HEAD_MAP` into the parameters of `nn.Dense(vocabulary size)` over the final output.

Source: Baevski et al. 2020 (arXiv 2006.11477); tensor names of transformers' Wav2Vec2.
"""

from collections.abc import Mapping
from typing import Any

from tiny_align_jax.encoders import _waveform
from tiny_align_jax.encoders._waveform import CTC_HEAD_MAP, Config, num_frames, preprocess
from tiny_align_jax.encoders._waveform_model import Encoder

__all__ = [
    "CTC_HEAD_MAP",
    "HF_MODEL_TYPES",
    "PARAM_MAP",
    "Config",
    "Encoder",
    "config_from_hf",
    "num_frames",
    "preprocess",
]

HF_MODEL_TYPES = ("wav2vec2",)
PARAM_MAP = _waveform.param_map("wav2vec2")


def config_from_hf(hf: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None) -> Config:
    """Config of a parsed config.json and preprocessor_config.json.

    Raises:
        ConfigError: listing every missing or unhandled attribute.
    """
    return _waveform.read_config(Config, hf, preprocessor, HF_MODEL_TYPES)
