"""Tiny random `transformers` decoders and how to run them beside ours."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from tiny_align_jax import registry
from tiny_align_jax.weights import convert, loading

TINY = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.02, 1.05, 1.1, 1.2, 1.3],
    "long_factor": [1.1, 1.5, 2.0, 3.0, 5.0, 8.0],
}
FULL, SLIDING = "full_attention", "sliding_attention"

# Our family, transformers' config class, and what differs from TINY.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "LlamaConfig", {"head_dim": 16}),
    "llama3_rope_tied": (
        "llama",
        "LlamaConfig",
        {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True},
    ),
    "llama_linear_rope_all_biases": (
        "llama",
        "LlamaConfig",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0},
        },
    ),
    "llama_multi_head": ("llama", "LlamaConfig", {"num_key_value_heads": 4}),
    "llama_multi_query": ("llama", "LlamaConfig", {"num_key_value_heads": 1}),
    "mistral_window": ("llama", "MistralConfig", {"sliding_window": 5}),
    "mistral_no_window": ("llama", "MistralConfig", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("llama", "Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2_window": (
        "llama",
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("llama", "Qwen3Config", {"head_dim": 16}),
    "qwen3_window_bias": (
        "llama",
        "Qwen3Config",
        {
            "head_dim": 16,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": [SLIDING, FULL, SLIDING],
        },
    ),
    "gemma2": (
        "gemma",
        "Gemma2Config",
        {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 24},
    ),
    "gemma2_tight_caps_multi_query": (
        "gemma",
        "Gemma2Config",
        {
            "head_dim": 16,
            "sliding_window": 5,
            "num_key_value_heads": 1,
            "attn_logit_softcapping": 1.0,
            "final_logit_softcapping": 2.0,
        },
    ),
    "gemma3": (
        "gemma",
        "Gemma3TextConfig",
        {"head_dim": 16, "sliding_window": 5, "num_hidden_layers": 7, "num_key_value_heads": 1},
    ),
    "gemma3_linear_rope": (
        "gemma",
        "Gemma3TextConfig",
        {
            "head_dim": 16,
            "sliding_window": 5,
            "layer_types": [FULL, SLIDING, SLIDING],
            "rope_parameters": {
                FULL: {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
                SLIDING: {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
    "phi3": ("phi", "Phi3Config", {"sliding_window": 5, "num_key_value_heads": 4}),
    "phi3_longrope": (
        "phi",
        "Phi3Config",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32},
    ),
    "phi4_partial_tied": (
        "phi",
        "Phi3Config",
        {
            "tie_word_embeddings": True,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5},
        },
    ),
    "stablelm": (
        "stablelm",
        "StableLmConfig",
        {"hidden_size": 64, "use_qkv_bias": True, "num_key_value_heads": 4},
    ),
    "stablelm_parallel_head_norm": (
        "stablelm",
        "StableLmConfig",
        {"hidden_size": 64, "use_parallel_residual": True, "qk_layernorm": True},
    ),
}


class TorchSource:
    """A torch model as the weights engine's tensor source; a tied head is not repeated."""

    def __init__(self, model: torch.nn.Module):
        tensors = model.state_dict()
        if model.config.tie_word_embeddings:
            tensors.pop("lm_head.weight")
        self._tensors = {k: v.float().numpy() for k, v in tensors.items()}

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._tensors))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def dtype(self, name: str) -> np.dtype:
        return self._tensors[name].dtype

    def read(self, name: str) -> np.ndarray:
        return self._tensors[name]

    def rows(self, name: str, ids) -> np.ndarray:
        return self._tensors[name][np.asarray(ids)]


@functools.partial(jax.jit, static_argnames="llm")
def _apply(llm, params, *inputs):
    return llm.apply({"params": params}, *inputs)


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same weights in `transformers` and in our package."""

    model: Any
    module: Any
    config: Any
    params: Any

    def with_model(self, model: Any) -> "Pair":
        return dataclasses.replace(self, model=model.eval())

    def with_params(self, params: Any) -> "Pair":
        return dataclasses.replace(self, params=params)

    def embed(self, ids):
        return self.module.embed(self.config, self.params, jnp.asarray(ids))

    def ours(self, ids, positions, mask, cache=None, dtype=jnp.float32):
        """Our logits and cache for token ids."""
        inputs = (self.embed(ids), jnp.asarray(positions), jnp.asarray(mask, bool), cache)
        return _apply(self.module.LLM(self.config, dtype), self.params, *inputs)

    @torch.no_grad()
    def theirs(self, ids, positions=None, mask=None) -> np.ndarray:
        """Logits of the torch model."""
        return (
            self.model(_tensor(ids), attention_mask=_tensor(mask), position_ids=_tensor(positions))
            .logits.float()
            .numpy()
        )


def _tensor(values):
    return None if values is None else torch.tensor(np.asarray(values), dtype=torch.long)


def torch_config(case: str, **overrides: Any) -> Any:
    """transformers' configuration of a case."""
    _, class_name, differences = CASES[case]
    values = {**TINY, **differences, **overrides}
    return getattr(transformers, class_name)(attn_implementation="eager", **values)


def make_pair(case: str, **overrides: Any) -> Pair:
    """A random model of `case` and its conversion; norms and biases are random too."""
    family = CASES[case][0]
    hf = torch_config(case, **overrides)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(hf).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    module = registry.resolve("llms", family)
    config = module.config_from_hf(hf.to_dict())
    shapes = loading.llm_shapes(module, config)
    params = convert.convert(TorchSource(model), module.PARAM_MAP, shapes, np.float32)
    return Pair(model=model, module=module, config=config, params=params)
