"""Hugging Face's config.json from GGUF metadata."""

from typing import Any

import numpy as np

from tiny_align_jax.types import WeightsError
from tiny_align_jax.weights.gguf import GGUFSource

# Llama 3.x's rotary scaling, the same in every published size but for the factor.
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# Not in the metadata: llama.cpp and transformers have these as constants of the architecture.
_GEMMA3_LOCAL_ROPE_THETA = 10_000.0
_GEMMA3_GLOBAL_EVERY = 6
_GEMMA3_27B_LAYERS = 62  # the one size whose attention scale is not 1 / sqrt(head width)


def config_json(source: GGUFSource) -> dict[str, Any]:
    """config.json of the checkpoint, as transformers would write it.

    Raises:
        WeightsError: metadata that is missing, or a variant that we do not read (experts, yarn).
    """
    if source.get("expert_count"):
        raise WeightsError(f"{source.path} is a mixture of experts; only dense models are read")
    builders = {"llama": _llama, "qwen2": _qwen, "qwen3": _qwen, "gemma3": _gemma3}
    return {**_common(source), **builders[source.architecture](source)}


def _common(source: GGUFSource) -> dict[str, Any]:
    vocab_size, width = source.shape("model.embed_tokens.weight")
    heads = int(source.require("attention.head_count"))
    names = source.names()
    config = {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": int(source.require("feed_forward_length")),
        "num_hidden_layers": int(source.require("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(source.get("attention.head_count_kv", heads)),
        "max_position_embeddings": int(source.require("context_length")),
        "rms_norm_eps": _short(source.require("attention.layer_norm_rms_epsilon")),
        "attention_dropout": 0.0,
        "tie_word_embeddings": "lm_head.weight" not in names,
        "use_cache": True,
    }
    for hf, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = source.metadata.get(f"tokenizer.ggml.{key}_token_id")
        config[f"{hf}_token_id"] = None if token is None else int(token)
    return config


def _llama(source: GGUFSource) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": _head_dim(source),
        "hidden_act": "silu",
        "attention_bias": _has(source, "self_attn.q_proj.bias"),
        "mlp_bias": _has(source, "mlp.up_proj.bias"),
        "rope_theta": _short(source.get("rope.freq_base", 10_000.0)),
        "rope_scaling": _rope_scaling(source),
    }


def _qwen(source: GGUFSource) -> dict[str, Any]:
    """Qwen 2, 2.5 and 3; the first two always have biases on q, k and v, so no key says so."""
    number = source.architecture[-1]
    config = {
        "architectures": [f"Qwen{number}ForCausalLM"],
        "model_type": source.architecture,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "rope_theta": _short(source.get("rope.freq_base", 1_000_000.0)),
        "rope_scaling": _rope_scaling(source),
    }
    return {**config, "head_dim": _head_dim(source)} if number == "3" else config


def _gemma3(source: GGUFSource) -> dict[str, Any]:
    layers = int(source.require("block_count"))
    head_dim = int(source.require("attention.key_length"))
    heads = int(source.require("attention.head_count"))
    scalar = head_dim
    if layers == _GEMMA3_27B_LAYERS:
        scalar = int(source.require("embedding_length")) // heads
    kinds = ("sliding_attention", "full_attention")
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "attention_bias": False,
        "head_dim": head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "sliding_window": int(source.require("attention.sliding_window")),
        "layer_types": [kinds[(i + 1) % _GEMMA3_GLOBAL_EVERY == 0] for i in range(layers)],
        "rope_theta": _short(source.get("rope.freq_base", 1_000_000.0)),
        "rope_local_base_freq": _GEMMA3_LOCAL_ROPE_THETA,
        "rope_scaling": _rope_scaling(source),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }


def _head_dim(source: GGUFSource) -> int:
    width, heads = source.require("embedding_length"), source.require("attention.head_count")
    head_dim = source.get("attention.key_length") or source.get("rope.dimension_count")
    return int(head_dim or width // heads)


def _has(source: GGUFSource, ending: str) -> bool:
    return any(name.endswith(ending) for name in source.names())


def _rope_scaling(source: GGUFSource) -> dict[str, Any] | None:
    kind = source.get("rope.scaling.type")
    factors = source.rope_factors()
    if factors is not None:
        return _llama3_rope(source, factors)
    if kind in (None, "none"):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": _short(source.require("rope.scaling.factor"))}
    raise WeightsError(
        f"{source.path}: rotary scaling {kind!r}; read are none, linear and Llama 3's"
    )


def _llama3_rope(source: GGUFSource, factors: np.ndarray) -> dict[str, Any]:
    """The words whose formula gives exactly the stored divisors.

    Source: Llama 3's rope scaling as in transformers' modeling_rope_utils
    (wavelengths beyond the old context are divided by `factor`, short ones kept, a ramp between).
    """
    rope = {**_LLAMA3_ROPE, "factor": _short(factors.max())}
    theta = float(source.get("rope.freq_base", 10_000.0))
    head_dim = 2 * len(factors)
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    ratio = rope["original_max_position_embeddings"] / wavelength
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((ratio - low) / (high - low), 0.0, 1.0)
    expected = 1 / ((1 - smooth) / rope["factor"] + smooth)
    if not np.allclose(factors, expected, rtol=1e-4):
        raise WeightsError(f"{source.path}: rope_freqs.weight is not Llama 3's rotary scaling")
    return rope


def _short(value: Any) -> float:
    """The shortest decimal of a float32: 1e-05 rather than 9.999999747378752e-06."""
    return float(str(np.float32(value)))
