"""From a model folder to a family's module, config and parameters; rows without the body."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights import writers
from tiny_align_jax import testing
from tiny_align_jax.llms import gemma, llama
from tiny_align_jax.types import WeightsError
from tiny_align_jax.weights import assets, loading
from tiny_align_jax.weights.folder import open_folder

_RNG = np.random.default_rng(0)
_LLAMA = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def _folder(path, config, arrays):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    writers.write_safetensors(path / "model.safetensors", arrays)
    return open_folder(path)


def test_load_llm(tmp_path):
    arrays = writers.llama_arrays(_RNG)
    folder = _folder(tmp_path, _LLAMA, arrays)
    loaded = loading.load_llm(folder, jnp.bfloat16)
    assert loaded.module is llama and loaded.fingerprint == folder.fingerprint
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {np.dtype(jnp.bfloat16)}
    table = arrays["model.embed_tokens.weight"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(loaded.params["embedder"]["embedding"], table)
    assert sum(leaf.size for leaf in jax.tree.leaves(loaded.params)) == sum(
        array.size for array in arrays.values()
    )


_GEMMA_GGUF_METADATA = writers.LLAMA_METADATA | {
    "attention.key_length": 16,
    "attention.sliding_window": 8,
}


def _write_gguf(path, architecture):
    """A float32 GGUF of `architecture`; returns the weights it holds under Hugging Face's names."""
    arrays = writers.llama_arrays(_RNG, 300)
    layers = [f"model.layers.{i}." for i in range(2)]
    if architecture == "qwen2":
        for layer in layers:
            widths = {"q": 64, "k": 32, "v": 32}
            biases = {f"{layer}self_attn.{n}_proj.bias": w for n, w in widths.items()}
            arrays |= {n: _RNG.standard_normal(w, "f4") for n, w in biases.items()}
    if architecture in ("qwen3", "gemma3"):
        norms = [f"{layer}self_attn.{n}_norm.weight" for layer in layers for n in "qk"]
        arrays |= {n: _RNG.standard_normal(16, "f4") for n in norms}
    if architecture == "gemma3":
        norms = [f"{layer}{n}_feedforward_layernorm.weight" for layer in layers for n in _SIDES]
        arrays |= {n: _RNG.standard_normal(64, "f4") for n in norms}
    metadata = _GEMMA_GGUF_METADATA if architecture == "gemma3" else writers.LLAMA_METADATA
    if architecture == "qwen3":
        metadata = metadata | {"attention.key_length": 16}
    heads = None if architecture == "llama" else {}
    stored = writers.as_gguf_tensors(arrays, writers.Kind.F32, heads, architecture)
    tokenizer = writers.bpe_metadata(writers.trained_bpe())
    writers.write_gguf(path, architecture, metadata, stored, tokenizer)
    return arrays


_SIDES = ("pre", "post")


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3"])
def test_a_gguf_file_gives_the_model_that_its_tensors_give(tmp_path, architecture):
    arrays = _write_gguf(tmp_path / "m.gguf", architecture)
    folder = assets.resolve(tmp_path / "m.gguf", tmp_path / "cache")
    loaded = loading.load_llm(folder)
    direct = loading.load_llm(_folder(tmp_path / "hf", folder.config, arrays))
    assert loaded.config == direct.config
    for ours, theirs in zip(
        jax.tree.leaves(loaded.params), jax.tree.leaves(direct.params), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=5e-7)


def test_load_encoder(tmp_path):
    config = testing.ENCODER_CONFIGS["whisper"]
    sizes = {"width": 16, "num_layers": 3}
    arrays = writers.whisper_arrays(_RNG, **sizes)
    arrays["model.encoder.embed_positions.weight"] = _RNG.standard_normal((100, 16)).astype("f2")
    arrays = {n: a for n, a in arrays.items() if ".fc" not in n}
    for i in range(3):
        layer = f"model.encoder.layers.{i}."
        arrays |= {
            layer + "fc1.weight": np.ones((24, 16), "f2"),
            layer + "fc1.bias": np.ones(24, "f2"),
        }
        arrays |= {
            layer + "fc2.weight": np.ones((16, 24), "f2"),
            layer + "fc2.bias": np.ones(16, "f2"),
        }
    loaded = loading.load_encoder(_folder(tmp_path, config, arrays))
    assert loaded.module.__name__.endswith("encoders.whisper") and loaded.config.num_layers == 3
    positions = arrays["model.encoder.embed_positions.weight"].astype(np.float32)
    np.testing.assert_array_equal(loaded.params["positions"], positions)
    of_encoder = [array.size for name, array in arrays.items() if ".encoder." in name]
    assert sum(leaf.size for leaf in jax.tree.leaves(loaded.params)) == sum(of_encoder)


def test_weights_that_do_not_fit_name_folder_family_and_tensors(tmp_path):
    arrays = writers.llama_arrays(_RNG)
    del arrays["model.norm.weight"]
    arrays["model.layers.0.mlp.extra.weight"] = np.ones((2, 2), "f4")
    with pytest.raises(WeightsError) as caught:
        loading.load_llm(_folder(tmp_path, _LLAMA, arrays))
    for part in (str(tmp_path), "llms.llama", "final_norm/scale", "mlp.extra.weight"):
        assert part in str(caught.value)


def test_embedding_rows_need_nothing_but_the_table(tmp_path):
    """The folder holds no other tensor, so the body cannot have been read."""
    table = _RNG.standard_normal((96, 64)).astype(np.float16)
    folder = _folder(tmp_path, _LLAMA, {"model.embed_tokens.weight": table})
    rows = loading.embedding_rows(folder, [95, 0, 7])
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, table[[95, 0, 7]].astype(np.float32))


def test_embedding_rows_are_scaled_as_the_first_layer_sees_them(tmp_path):
    config = _LLAMA | {
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_local_base_freq": 10000.0,
    }
    table = _RNG.standard_normal((96, 64)).astype(np.float32)
    folder = _folder(tmp_path, config, {"model.embed_tokens.weight": table})
    rows = loading.embedding_rows(folder, [5, 2])
    module, ours = loading.llm_config(folder)
    assert module is gemma
    whole = gemma.embed(ours, {"embedder": {"embedding": jnp.asarray(table)}}, jnp.array([5, 2]))
    np.testing.assert_allclose(rows, whole, rtol=1e-6)
    np.testing.assert_allclose(rows, math.sqrt(64) * table[[5, 2]], rtol=1e-2)


def test_a_folder_without_a_table(tmp_path):
    folder = _folder(tmp_path, _LLAMA, {"model.norm.weight": np.ones(64, "f4")})
    with pytest.raises(WeightsError, match="embedder/embedding, found none"):
        loading.embedding_rows(folder, [0])


@pytest.mark.parametrize("load", [loading.load_encoder, loading.load_llm])
def test_unknown_model_types_list_the_known_ones(tmp_path, load):
    folder = _folder(tmp_path, {"model_type": "rwkv"}, {"a": np.ones(1, "f4")})
    known = "whisper" if load is loading.load_encoder else "gemma3_text.*llama"
    with pytest.raises(WeightsError, match=rf"'rwkv'.*{known}"):
        load(folder)
