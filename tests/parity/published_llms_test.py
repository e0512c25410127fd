"""Published LLM sizes: our parameter count under `eval_shape` against transformers' on the meta device.

The dictionaries are the published config.json files without what only names or initialises things.
"""

import pathlib
import re
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import transformers  # noqa: E402

from tiny_align_jax import registry  # noqa: E402
from tiny_align_jax.weights import loading  # noqa: E402

pytestmark = pytest.mark.parity

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "models.md"


def sizes(vocab: int, dim: int, mlp: int, layers: int, heads: int, kv: int) -> dict[str, int]:
    return {
        "vocab_size": vocab,
        "hidden_size": dim,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
    }


LLAMA3 = {
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
SMOLLM2 = {
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
QWEN2 = {
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
GEMMA3 = {
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
MISTRAL = {
    "model_type": "mistral",
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
}

# Name -> (config.json, parameters stated on the model card, a tied head counted once).
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "Llama-3.2-1B": (
        LLAMA3 | sizes(128256, 2048, 8192, 16, 32, 8) | {"head_dim": 64},
        1_235_814_400,
    ),
    "Llama-3.2-3B": (
        LLAMA3 | sizes(128256, 3072, 8192, 28, 24, 8) | {"head_dim": 128},
        3_212_749_824,
    ),
    "SmolLM2-135M": (SMOLLM2 | sizes(49152, 576, 1536, 30, 9, 3), 134_515_008),
    "SmolLM2-360M": (SMOLLM2 | sizes(49152, 960, 2560, 32, 15, 5), 361_821_120),
    "SmolLM2-1.7B": (
        SMOLLM2 | sizes(49152, 2048, 8192, 24, 32, 32) | {"rope_theta": 130000},
        1_711_376_384,
    ),
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
        | sizes(32000, 2048, 5632, 22, 32, 4),
        1_100_048_384,
    ),
    "Mistral-7B-v0.1": (
        MISTRAL
        | sizes(32000, 4096, 14336, 32, 32, 8)
        | {"sliding_window": 4096, "rope_theta": 10000.0},
        7_241_732_096,
    ),
    "Mistral-7B-v0.3": (
        MISTRAL
        | sizes(32768, 4096, 14336, 32, 32, 8)
        | {"sliding_window": None, "rope_theta": 1000000.0},
        7_248_023_552,
    ),
    "Qwen2.5-0.5B": (QWEN2 | sizes(151936, 896, 4864, 24, 14, 2), 494_032_768),
    "Qwen2.5-1.5B": (
        QWEN2 | sizes(151936, 1536, 8960, 28, 12, 2) | {"max_window_layers": 28},
        1_543_714_304,
    ),
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
        | sizes(151936, 1024, 3072, 28, 16, 8),
        596_049_920,
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
        | sizes(256000, 2304, 9216, 26, 8, 4),
        2_614_341_888,
    ),
    "Gemma-3-270M": (
        GEMMA3
        | sizes(262144, 640, 2048, 18, 4, 1)
        | {
            "_sliding_window_pattern": 6,
            "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
            "use_bidirectional_attention": False,
        },
        268_098_176,
    ),
    "Gemma-3-1B": (
        GEMMA3 | sizes(262144, 1152, 6912, 26, 4, 1) | {"sliding_window_pattern": 6},
        999_885_952,
    ),
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
                "long_factor": [float(x) for x in np.linspace(1.08, 64.2, 48).round(2)],
                "short_factor": [float(x) for x in np.linspace(1.0, 2.81, 48).round(2)],
                "type": "longrope",
            },
            "rope_theta": 10000.0,
            "sliding_window": 262144,
            "tie_word_embeddings": False,
        }
        | sizes(32064, 3072, 8192, 32, 32, 32),
        3_821_079_552,
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
        | sizes(100352, 2048, 5632, 24, 32, 32),
        1_644_515_328,
    ),
}


def names_in_docs() -> list[str]:
    """First column of the table under the heading `### Published sizes` of the LLM section."""
    section = DOCS.read_text().split("## LLMs")[1].split("\n## ")[0]
    table = section.split("### Published sizes")[1].split("\n### ")[0]
    return re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE)


def test_every_size_that_the_docs_name_is_covered():
    assert sorted(names_in_docs()) == sorted(PUBLISHED)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameter_count_equals_transformers(name):
    hf, stated = PUBLISHED[name]
    module = loading.find_family("llms", hf)
    shapes = loading.llm_shapes(module, module.config_from_hf(hf))
    ours = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**hf)
        )
    assert ours == sum(p.numel() for p in theirs.parameters())
    assert ours == stated


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_every_published_tensor_has_a_slot(name):
    """The engine's plan over transformers' tensor names and shapes, without data."""
    hf, _ = PUBLISHED[name]
    module = loading.find_family("llms", hf)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**hf)
        )
    rules = [(re.compile(rule.source), rule) for rule in module.PARAM_MAP]
    shapes = loading.llm_shapes(module, module.config_from_hf(hf))
    targets = {"/".join(k.key for k in path) for path, _ in jax.tree.leaves_with_path(shapes)}
    used = set()
    for tensor, _ in model.named_parameters():
        matches = [rule for pattern, rule in rules if pattern.fullmatch(tensor)]
        assert len(matches) == 1, tensor
        used.add(matches[0].target)
    assert used == targets


def test_every_family_has_a_published_size():
    covered = {loading.find_family("llms", hf).__name__ for hf, _ in PUBLISHED.values()}
    assert covered == {registry.resolve("llms", name).__name__ for name in registry.names("llms")}
