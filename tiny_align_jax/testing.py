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
_TINY_CONFORMER = (
    _TINY_WAVEFORM
    | _LARGE_STYLE
    | {
        "model_type": "wav2vec2-conformer",
        "hidden_act": "swish",
        "position_embeddings_type": "relative",
        "conv_depthwise_kernel_size": 5,
    }
)
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
    "wav2vec2_conformer": _TINY_CONFORMER,
    "wav2vec2_conformer/rotary": _TINY_CONFORMER
    | {"position_embeddings_type": "rotary", "feat_extract_norm": "group", "conv_bias": False},
}

# ---- LLMs -----------------------------------------------------------------------------------
_TINY_LLM = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_TINY_GEMMA = _TINY_LLM | {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8}
LLM_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _TINY_LLM | {"model_type": "llama", "tie_word_embeddings": True},
    "llama/mistral": _TINY_LLM | {"model_type": "mistral", "sliding_window": 6},
    "llama/qwen2": _TINY_LLM | {"model_type": "qwen2", "tie_word_embeddings": True},
    "llama/qwen3": _TINY_LLM | {"model_type": "qwen3", "head_dim": 8},
    "gemma": _TINY_GEMMA | {"model_type": "gemma3_text", "sliding_window_pattern": 2},
    "gemma/gemma2": _TINY_GEMMA | {"model_type": "gemma2"},
    "phi": _TINY_LLM | {"model_type": "phi3", "sliding_window": 6},
    "stablelm": _TINY_LLM
    | {"model_type": "stablelm", "use_qkv_bias": True, "partial_rotary_factor": 0.5},
    "stablelm/parallel": _TINY_LLM
    | {"model_type": "stablelm", "use_parallel_residual": True, "qk_layernorm": True},
}
