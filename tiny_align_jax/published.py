"""Published sizes of encoders and LLMs, as Hugging Face config.json dictionaries.

For what needs a model's shape but not its weights: memory plans, parameter counts. What only names or
initialises things is left out. `docs/models.md` lists the names; tests compare every entry with
`transformers`.
"""

from typing import Any

import numpy as np


def find(kind: str, name: str) -> dict[str, Any] | None:
    """config.json of a published model by its name, hub id or asset name; None if it is not listed.

    Fine-tuned variants have the shape of their base: 'meta-llama/Llama-3.2-1B-Instruct' is Llama-3.2-1B.

    Args:
        kind: 'llms' or 'encoders'.
        name: case does not matter.
    """
    wanted = _plain(name)
    return next((hf for known, hf in _TABLES[kind].items() if _plain(known) == wanted), None)


def _plain(name: str) -> str:
    last = name.partition("@")[0].rstrip("/").rpartition("/")[2].lower()
    return last.removesuffix("-instruct").removesuffix("-it")


def _sizes(vocab: int, dim: int, mlp: int, layers: int, heads: int, kv: int) -> dict[str, int]:
    return {
        "vocab_size": vocab,
        "hidden_size": dim,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
    }


_LLAMA3 = {
    "model_type": "llama",
    "attention_bias": False,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
_SMOLLM2 = {
    "model_type": "llama",
    "attention_bias": False,
    "hidden_act": "silu",
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
}
_QWEN2 = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_mrope": False,
    "use_sliding_window": False,
}
_GEMMA3 = {
    "model_type": "gemma3_text",
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 32768,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 512,
}
_MISTRAL = {
    "model_type": "mistral",
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
}

LLMS: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B": (_LLAMA3 | _sizes(128256, 2048, 8192, 16, 32, 8) | {"head_dim": 64}),
    "Llama-3.2-3B": (_LLAMA3 | _sizes(128256, 3072, 8192, 28, 24, 8) | {"head_dim": 128}),
    "SmolLM2-135M": _SMOLLM2 | _sizes(49152, 576, 1536, 30, 9, 3),
    "SmolLM2-360M": _SMOLLM2 | _sizes(49152, 960, 2560, 32, 15, 5),
    "SmolLM2-1.7B": (_SMOLLM2 | _sizes(49152, 2048, 8192, 24, 32, 32) | {"rope_theta": 130000}),
    "TinyLlama-1.1B": (
        {
            "model_type": "llama",
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "tie_word_embeddings": False,
        }
        | _sizes(32000, 2048, 5632, 22, 32, 4)
    ),
    "Mistral-7B-v0.1": (
        _MISTRAL
        | _sizes(32000, 4096, 14336, 32, 32, 8)
        | {"sliding_window": 4096, "rope_theta": 10000.0}
    ),
    "Mistral-7B-v0.3": (
        _MISTRAL
        | _sizes(32768, 4096, 14336, 32, 32, 8)
        | {"sliding_window": None, "rope_theta": 1000000.0}
    ),
    "Qwen2.5-0.5B": _QWEN2 | _sizes(151936, 896, 4864, 24, 14, 2),
    "Qwen2.5-1.5B": (_QWEN2 | _sizes(151936, 1536, 8960, 28, 12, 2) | {"max_window_layers": 28}),
    "Qwen3-0.6B": (
        {
            "model_type": "qwen3",
            "attention_bias": False,
            "head_dim": 128,
            "hidden_act": "silu",
            "max_position_embeddings": 40960,
            "max_window_layers": 28,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
        }
        | _sizes(151936, 1024, 3072, 28, 16, 8)
    ),
    "Gemma-2-2B": (
        {
            "model_type": "gemma2",
            "attention_bias": False,
            "attn_logit_softcapping": 50.0,
            "cache_implementation": "hybrid",
            "final_logit_softcapping": 30.0,
            "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 8192,
            "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
        }
        | _sizes(256000, 2304, 9216, 26, 8, 4)
    ),
    "Gemma-3-270M": (
        _GEMMA3
        | _sizes(262144, 640, 2048, 18, 4, 1)
        | {
            "_sliding_window_pattern": 6,
            "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
            "use_bidirectional_attention": False,
        }
    ),
    "Gemma-3-1B": (_GEMMA3 | _sizes(262144, 1152, 6912, 26, 4, 1) | {"sliding_window_pattern": 6}),
    "Phi-3.5-mini": (
        {
            "model_type": "phi3",
            "attention_bias": False,
            "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
            "embd_pdrop": 0.0,
            "hidden_act": "silu",
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "resid_pdrop": 0.0,
            "rms_norm_eps": 1e-05,
            # 48 published factors each; their values do not change the count.
            "rope_scaling": {
                "long_factor": [round(float(x), 2) for x in np.linspace(1.08, 64.2, 48)],
                "short_factor": [round(float(x), 2) for x in np.linspace(1.0, 2.81, 48)],
                "type": "longrope",
            },
            "rope_theta": 10000.0,
            "sliding_window": 262144,
            "tie_word_embeddings": False,
        }
        | _sizes(32064, 3072, 8192, 32, 32, 32)
    ),
    "StableLM-2-1.6B": (
        {
            "model_type": "stablelm",
            "hidden_act": "silu",
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": 4096,
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000,
            "tie_word_embeddings": False,
            "use_qkv_bias": True,
        }
        | _sizes(100352, 2048, 5632, 24, 32, 32)
    ),
}


def _whisper(dim: int, layers: int, heads: int, decoder_layers: int, mels: int = 80, vocab=51_865):
    return {
        "model_type": "whisper",
        "d_model": dim,
        "encoder_layers": layers,
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * dim,
        "decoder_layers": decoder_layers,
        "decoder_attention_heads": heads,
        "decoder_ffn_dim": 4 * dim,
        "num_mel_bins": mels,
        "max_source_positions": 1500,
        "vocab_size": vocab,
    }


_CONVOLUTIONS: dict[str, Any] = {
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": False,
    "feat_extract_norm": "group",
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "do_stable_layer_norm": False,
}


def _waveform(model_type: str, dim: int = 768, layers: int = 12, heads: int = 12, **rest: Any):
    sizes = {
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * dim,
    }
    return {"model_type": model_type} | _CONVOLUTIONS | sizes | rest


_LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
_LARGE = _LAYER_NORM | {"dim": 1024, "layers": 24, "heads": 16}
_XLARGE = _LAYER_NORM | {"dim": 1280, "layers": 48, "heads": 16}
_CONFORMER = {
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "hidden_act": "swish",
    "dim": 1024,
    "layers": 24,
    "heads": 16,
}

ENCODERS: dict[str, dict[str, Any]] = {
    "whisper-tiny": _whisper(384, 4, 6, 4),
    "whisper-tiny.en": _whisper(384, 4, 6, 4, vocab=51_864),
    "whisper-base": _whisper(512, 6, 8, 6),
    "whisper-base.en": _whisper(512, 6, 8, 6, vocab=51_864),
    "whisper-small": _whisper(768, 12, 12, 12),
    "whisper-small.en": _whisper(768, 12, 12, 12, vocab=51_864),
    "whisper-medium": _whisper(1024, 24, 16, 24),
    "whisper-medium.en": _whisper(1024, 24, 16, 24, vocab=51_864),
    "whisper-large": _whisper(1280, 32, 20, 32),
    "whisper-large-v2": _whisper(1280, 32, 20, 32),
    "whisper-large-v3": _whisper(1280, 32, 20, 32, mels=128, vocab=51_866),
    "whisper-large-v3-turbo": _whisper(1280, 32, 20, 4, mels=128, vocab=51_866),
    "wav2vec2-base": _waveform("wav2vec2"),
    "wav2vec2-large": _waveform("wav2vec2", 1024, 24, 16),
    "wav2vec2-large-lv60": _waveform("wav2vec2", **_LARGE, conv_bias=True),
    "wav2vec2-xls-r-1b": _waveform("wav2vec2", **_XLARGE, conv_bias=True),
    "wav2vec2-conformer-rel-pos-large": _waveform(
        "wav2vec2-conformer", **_CONFORMER, position_embeddings_type="relative"
    ),
    "wav2vec2-conformer-rope-large": _waveform(
        "wav2vec2-conformer", **_CONFORMER, position_embeddings_type="rotary"
    ),
    "hubert-base-ls960": _waveform("hubert"),
    "hubert-large-ll60k": _waveform("hubert", **_LARGE, conv_bias=True),
    "hubert-xlarge-ll60k": _waveform("hubert", **_XLARGE, conv_bias=True),
    "wavlm-base": _waveform("wavlm"),
    "wavlm-base-plus": _waveform("wavlm"),
    "wavlm-large": _waveform("wavlm", **_LARGE),
}

_TABLES = {"llms": LLMS, "encoders": ENCODERS}
