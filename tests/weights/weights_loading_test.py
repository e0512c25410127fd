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
from tiny_align_jax.weights import loading
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
    query = loaded.params["layers"]["attention"]["q"]["kernel"]
    expected = arrays["model.layers.1.self_attn.q_proj.weight"].T.astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(query)[1].reshape(64, 64), expected)
    ids = jnp.array([[3, 1, 4]])
    embedded = llama.embed(loaded.config, loaded.params, ids)
    model = llama.LLM(loaded.config, jnp.float32)
    logits, _ = model.apply(
        {"params": loaded.params}, embedded, jnp.arange(3)[None], jnp.ones((1, 3), bool)
    )
    assert logits.shape == (1, 3, 96) and np.isfinite(logits).all()


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
    silence = loaded.module.preprocess(loaded.config, np.zeros(16000, "f4"), 16000)
    model = loaded.module.Encoder(loaded.config, jnp.float32)
    states = model.apply({"params": loaded.params}, silence[None], jnp.array([16000]))
    assert len(states) == 4 and np.isfinite(states[-1]).all()


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
