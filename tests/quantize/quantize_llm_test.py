"""Whole models with quantised matrices: loading, logits, memory, decoding, the rows of the table."""

import functools
import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights import writers
from tiny_align_jax import decode, joined, registry, testing
from tiny_align_jax.quantize.config import Config
from tiny_align_jax.quantize.grouped import Grouped, from_leaves
from tiny_align_jax.quantize.layout import layout_of
from tiny_align_jax.types import ConfigError, Rule
from tiny_align_jax.weights import convert, loading, quantised
from tiny_align_jax.weights.folder import open_folder
from tiny_align_jax.weights.gguf import GGUFSource

_HF = {
    "model_type": "llama",
    "vocab_size": 300,
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
_HELD = {
    "int8": Config("int8"),
    "int4": Config("int4"),
    "int4 table": Config("int4", table="int4", minimum=False),
    "gguf": Config("gguf"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder with its GGUF file (Q4_1) beside the floats that were read from it."""
    path = tmp_path_factory.mktemp("llm")
    arrays = writers.write_llama_gguf(path / "model.gguf", writers.Kind.Q4_1)
    size = len(arrays["model.embed_tokens.weight"])
    (path / "config.json").write_text(json.dumps(_HF | {"vocab_size": size}))
    writers.write_safetensors(path / "model.safetensors", arrays)
    return open_folder(path)


def is_quantised(node):
    return isinstance(node, Grouped)


def dequantised(params):
    """The same tree with float32 arrays: what the quantised model has to compute with."""

    def floats(node):
        if not is_quantised(node):
            return node
        stacked = node.codes.ndim == 3
        values = (jax.vmap(Grouped.dequantise) if stacked else Grouped.dequantise)(node)
        return np.asarray(values)

    return jax.tree.map(floats, params, is_leaf=is_quantised)


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, ids):
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    return model.apply(params, model.embed(params, ids), positions, positions >= 0)[0]


@pytest.mark.parametrize("name", _HELD)
def test_a_quantised_model_computes_with_its_dequantised_matrices(folder, name):
    loaded = loading.load_llm(folder, jnp.float32, _HELD[name])
    matrices = [n for n in jax.tree.leaves(loaded.params, is_leaf=is_quantised) if is_quantised(n)]
    assert len(matrices) == 8  # q, k, v, out, gate, up, down and the table
    ids = jnp.arange(12).reshape(2, 6)
    model = decode.LanguageModel(loaded.module, loaded.config)
    want = run(model, dequantised(loaded.params), ids)
    got = run(model, loaded.params, ids)
    np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())


def test_a_gpu_holds_the_same_model_with_its_codes_in_words(folder, monkeypatch):
    want = loading.load_llm(folder, jnp.float32, _HELD["gguf"])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    loaded = loading.load_llm(folder, jnp.float32, _HELD["gguf"], joined.place_unjoined)
    held = joined.for_decoding(loaded.params)
    matrices = [n for n in jax.tree.leaves(held, is_leaf=is_quantised) if is_quantised(n)]
    assert len(matrices) == 5  # q, k, v are one, gate and up are one
    assert all(m.codes.dtype == jnp.uint32 for m in matrices)
    of = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert of(held) == of(
        joined.shapes_for_decoding(jax.eval_shape(lambda: jax.tree.map(jnp.asarray, want.params)))
    )
    model = decode.LanguageModel(loaded.module, loaded.config)
    ids = jnp.arange(12).reshape(2, 6)
    logits = run(model, want.params, ids)
    np.testing.assert_allclose(run(model, held, ids), logits, atol=1e-5 * np.abs(logits).max())


@pytest.mark.parametrize("name", _HELD)
def test_bytes_are_known_before_anything_is_read(folder, name):
    loaded = loading.load_llm(folder, jnp.float32, _HELD[name])
    shapes = loading.held_shapes(folder, "llms", jnp.float32, _HELD[name])
    of = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert of(shapes) == of(loaded.params)
    if name != "gguf":  # the Config alone is enough
        known = (loaded.module, loaded.config, jnp.float32, _HELD[name])
        assert of(loading.held_shapes_of("llms", *known)) == of(loaded.params)


def test_gguf_blocks_become_the_values_that_the_file_means(folder):
    loaded = loading.load_llm(folder, jnp.float32, Config("gguf"))
    params, source = dequantised(loaded.params), GGUFSource(folder.path / "model.gguf")
    for layer in range(2):
        for theirs, ours in (("self_attn.q_proj", "attention/q"), ("mlp.down_proj", "mlp/down")):
            part, matrix = ours.split("/")
            want = source.read(f"model.layers.{layer}.{theirs}.weight")
            np.testing.assert_array_equal(params["layers"][part][matrix]["weight"][layer], want)
    assert loaded.params["layers"]["attention"]["q"]["weight"].bits == 4


@pytest.mark.parametrize("name", _HELD)
def test_the_projector_gets_the_rows_that_the_llm_looks_up(folder, name, monkeypatch):
    monkeypatch.setattr(loading, "_ROWS_AT_ONCE", 3)
    loaded = loading.load_llm(folder, jnp.float32, _HELD[name])
    ids = np.array([7, 0, 250, 7])
    want = loaded.module.embed(loaded.config, loaded.params, ids)
    np.testing.assert_array_equal(loading.embedding_rows(folder, ids, _HELD[name]), want)
    assert (loading.embedding_rows(folder, ids) != np.asarray(want)).any()


def test_fingerprints_tell_how_weights_are_held(folder):
    held = [loading.held_fingerprint(folder, c) for c in (Config(), *_HELD.values())]
    assert held[0] == folder.fingerprint and len(set(held)) == len(held)


def test_decoding_answers_as_the_dequantised_model_does(folder):
    loaded = loading.load_llm(folder, jnp.float32, _HELD["gguf"])
    model = decode.LanguageModel(loaded.module, loaded.config)
    settings = decode.Config(max_new_tokens=6, tail_buckets=(8,), batch_buckets=(2,))
    prompts = [np.asarray(model.embed(loaded.params, np.arange(i, i + 5))) for i in (3, 40)]
    answers = [
        decode.Generator(model, params, [299], settings).generate(prompts)
        for params in (loaded.params, dequantised(loaded.params))
    ]
    assert [a.ids for a in answers[0]] == [a.ids for a in answers[1]]


def test_no_full_precision_copy_of_all_layers_or_of_the_table_exists():
    """In a compiled decoding loop, temporaries stay below one dequantised layer and a block."""
    num_layers, dim, mlp, vocab = 24, 256, 512, 16_384
    hf = _HF | {"hidden_size": dim, "intermediate_size": mlp, "num_hidden_layers": num_layers}
    hf |= {"vocab_size": vocab}
    module = registry.resolve("llms", "llama")
    config = module.config_from_hf(hf)
    shapes = loading.llm_shapes(module, config)

    def hold(path, leaf):
        if path[-1].key not in ("weight", "embedding"):
            return leaf
        layout = layout_of(leaf.shape[-1], "int4", Config("int4"))
        leaves = layout.leaves(leaf.shape).items()
        return from_leaves({n: jax.ShapeDtypeStruct(*s) for n, s in leaves}, layout, np.float32)

    params = jax.tree_util.tree_map_with_path(hold, shapes)
    model = decode.LanguageModel(module, config)

    def loop(params):
        def step(i, carry):
            ids, cache = carry
            x = model.embed(params, ids)[:, None]
            logits, cache = model.apply(params, x, i[None, None], jnp.ones((1, 1), bool), cache)
            return jnp.argmax(logits[:, -1], -1).astype(jnp.int32), cache

        start = (jnp.zeros((1,), jnp.int32), model.init_cache(1, 16))
        return jax.lax.fori_loop(0, 8, step, start)[0]

    memory = jax.jit(loop).lower(params).compile().memory_analysis()
    num_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    floats = sum(x.size * 4 for x in jax.tree.leaves(shapes))
    assert memory.argument_size_in_bytes == pytest.approx(num_bytes, rel=0.01)
    layer = 4 * (2 * dim * dim + 2 * dim * 32 + 3 * dim * mlp)
    assert memory.temp_size_in_bytes < 2 * layer + 4 * vocab * 4 < floats / 10


def test_a_folder_without_gguf_says_what_to_use(tmp_path):
    arrays = writers.llama_arrays(np.random.default_rng(0))
    (tmp_path / "config.json").write_text(json.dumps(_HF | {"vocab_size": 96}))
    writers.write_safetensors(tmp_path / "model.safetensors", arrays)
    with pytest.raises(ConfigError, match=r"no model.gguf; use 'int8' or 'int4'"):
        loading.load_llm(open_folder(tmp_path), jnp.float32, Config("gguf"))


@pytest.mark.parametrize("key", ["whisper", "wav2vec2_conformer"])
def test_an_encoder_in_int8_hears_nearly_the_same(key):
    """Its matrices by the loader's rule, convolutions and positions as they are."""
    module = registry.resolve("encoders", key)
    config = module.config_from_hf(testing.ENCODER_CONFIGS[key])
    shapes = loading.encoder_shapes(module, config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape, np.float32), shapes)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.abs(leaf) if "var" in path[-1].key else leaf, params
    )

    class Source:
        """The tree as a checkpoint: 'a/b/kernel' [in, out] is stored as [out, in]."""

        arrays: ClassVar = dict(convert.named_leaves(params))

        def _layers(self, name):
            return name.startswith("layers/")

        def names(self):
            found = []
            for name, leaf in self.arrays.items():
                layers = range(len(leaf)) if self._layers(name) else [None]
                found += [name if i is None else f"{name}.{i}" for i in layers]
            return tuple(sorted(found))

        def read(self, name):
            base, _, layer = name.partition(".")
            leaf = self.arrays[base][int(layer)] if layer else self.arrays[base]
            return leaf.T if leaf.ndim == 2 and base.endswith("kernel") else leaf

        def rows(self, name, ids):
            return self.read(name)[ids]

        def shape(self, name):
            return self.read(name).shape

        def dtype(self, name):
            return np.dtype(np.float32)

    rules = []
    for name, leaf in Source.arrays.items():
        stacked = name.startswith("layers/")
        pattern = name + (r"\.(?P<layer>\d+)" if stacked else "")
        is_dense = name.endswith("kernel") and leaf.ndim - stacked == 2
        rules.append(Rule(pattern, name, "linear" if is_dense else "copy"))
    source = Source()
    make_store = quantised.make_store(source, Config("int8"), np.float32)
    held = convert.convert(source, rules, shapes, np.float32, make_store)
    assert sum(is_quantised(n) for n in jax.tree.leaves(held, is_leaf=is_quantised)) >= 5
    waveform = rng.standard_normal(4000).astype(np.float32)
    inputs = np.asarray(module.preprocess(config, waveform, 4000))[None]
    encoder = module.Encoder(config)
    hear = jax.jit(lambda p: encoder.apply({"params": p}, inputs, np.array([4000]), (-1, 1)))
    for got, want in zip(hear(held), hear(params), strict=True):
        error = np.sqrt(np.mean((np.asarray(got) - want) ** 2)) / np.std(want)
        assert 0 < error < 0.05
