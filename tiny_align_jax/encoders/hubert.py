"""HuBERT, base and large: wav2vec2's network, trained to predict clusters.

Source: Hsu et al. 2021 (arXiv 2106.07447); tensor names of transformers' Hubert.
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

HF_MODEL_TYPES = ("hubert",)
PARAM_MAP = _waveform.param_map("hubert")


def config_from_hf(hf: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None) -> Config:
    """Config of a parsed config.json and preprocessor_config.json.

    Raises:
        ConfigError: listing every missing or unhandled attribute.
    """
    optional = {"feature_norm": "feat_proj_layer_norm"}
    return _waveform.read_config(Config, hf, preprocessor, HF_MODEL_TYPES, optional=optional)
