"""Tiny sizes of every frozen family, as Hugging Face config.json dictionaries.

Contract tests build each plug-in from its entry, so a new encoder or LLM family adds one here.
Keys are `<family>` or `<family>/<variant>`.
"""

from typing import Any

_TINY_WAVEFORM = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "conv_dim": [8, 8, 12],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 2, 2],
    "conv_bias": False,
    "feat_extract_norm": "group",
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "do_stable_layer_norm": False,
}
_LARGE_STYLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
_TINY_WHISPER = {
    "model_type": "whisper",
    "d_model": 16,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "num_mel_bins": 80,
    "max_source_positions": 100,
}

# ---- encoders -------------------------------------------------------------------------------
ENCODER_CONFIGS: dict[str, dict[str, Any]] = {
    "whisper": _TINY_WHISPER,
    "whisper/128_mels": _TINY_WHISPER | {"num_mel_bins": 128},
    "wav2vec2": _TINY_WAVEFORM | {"model_type": "wav2vec2"},
    "wav2vec2/large": _TINY_WAVEFORM | _LARGE_STYLE | {"model_type": "wav2vec2"},
    "hubert": _TINY_WAVEFORM | {"model_type": "hubert", "feat_proj_layer_norm": False},
    "hubert/large": _TINY_WAVEFORM | _LARGE_STYLE | {"model_type": "hubert"},
    "wavlm": _TINY_WAVEFORM | {"model_type": "wavlm", "num_buckets": 16, "max_bucket_distance": 40},
    "wavlm/large": _TINY_WAVEFORM | _LARGE_STYLE | {"model_type": "wavlm", "num_buckets": 32},
}

# ---- LLMs -----------------------------------------------------------------------------------
LLM_CONFIGS: dict[str, dict[str, Any]] = {}
