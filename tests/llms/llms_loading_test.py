"""LLM folders on disk, through the weights engine."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tiny_align_jax import testing
from tiny_align_jax.types import WeightsError
from tiny_align_jax.weights import assets, loading


@pytest.fixture
def qwen_folder(tmp_path):
    """A tiny Qwen2 in Hugging Face's layout, written by hand."""
    hf = testing.LLM_CONFIGS["llama/qwen2"]
    rng = np.random.default_rng(0)
    dim, mlp, kv = hf["hidden_size"], hf["intermediate_size"], 16
    shapes = {"model.embed_tokens.weight": (hf["vocab_size"], dim), "model.norm.weight": (dim,)}
    for layer in range(hf["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, out in (("q", dim), ("k", kv), ("v", kv)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (out, dim)
            shapes[f"{prefix}self_attn.{name}_proj.bias"] = (out,)
        shapes[f"{prefix}self_attn.o_proj.weight"] = (dim, dim)
        shapes[f"{prefix}mlp.gate_proj.weight"] = (mlp, dim)
        shapes[f"{prefix}mlp.up_proj.weight"] = (mlp, dim)
        shapes[f"{prefix}mlp.down_proj.weight"] = (dim, mlp)
        shapes[f"{prefix}input_layernorm.weight"] = (dim,)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (dim,)
    tensors = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    (tmp_path / "config.json").write_text(json.dumps(hf))
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path, tensors


def test_weights_land_in_their_layer(qwen_folder):
    path, tensors = qwen_folder
    loaded = loading.load_llm(assets.open_folder(path))
    layers = loaded.params["layers"]
    for layer in range(2):
        np.testing.assert_array_equal(
            layers["mlp"]["down"]["weight"][layer],
            tensors[f"model.layers.{layer}.mlp.down_proj.weight"],
        )
        np.testing.assert_array_equal(
            layers["attention"]["v"]["bias"][layer],
            tensors[f"model.layers.{layer}.self_attn.v_proj.bias"],
        )


def test_a_tied_head_written_twice_is_not_used(qwen_folder):
    path, tensors = qwen_folder
    head = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": head}, path / "model.safetensors")
    loaded = loading.load_llm(assets.open_folder(path))
    assert "head" not in loaded.params


def test_foreign_and_missing_tensors_are_named_together(qwen_folder):
    path, tensors = qwen_folder
    del tensors["model.norm.weight"]
    save_file(tensors | {"model.adapter.weight": np.zeros((2, 2))}, path / "model.safetensors")
    with pytest.raises(WeightsError, match="final_norm/scale") as error:
        loading.load_llm(assets.open_folder(path))
    assert "model.adapter.weight" in str(error.value)


def test_qwen2_has_no_output_bias_whatever_attention_bias_says():
    hf = testing.LLM_CONFIGS["llama/qwen2"]
    module = loading.find_family("llms", hf)
    assert module.config_from_hf(hf | {"attention_bias": True}) == module.config_from_hf(hf)
