"""What every LLM family keeps, on tiny random weights and without torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiny_align_jax import joined, registry, testing
from tiny_align_jax.types import ConfigError
from tiny_align_jax.weights import loading

VOCAB, LENGTH = 97, 10
ATOL = 2e-5


class Subject:
    """One family at a tiny size with random parameters, norms and biases included."""

    def __init__(self, key: str):
        self.hf = testing.LLM_CONFIGS[key]
        self.module = registry.resolve("llms", key.split("/")[0])
        self.config = self.module.config_from_hf(self.hf)
        shapes = loading.llm_shapes(self.module, self.config)
        rng = np.random.default_rng(0)
        self.params = jax.tree.map(
            lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), s.dtype), shapes
        )

    def apply(self, *inputs, params=None, dtype=jnp.float32, remat=False, jit=True):
        llm = self.module.LLM(self.config, dtype, remat)
        function = _jitted if jit else _apply
        return function(llm, self.params if params is None else params, *inputs)

    def embeddings(self, batch: int, length: int = LENGTH, seed: int = 1):
        ids = np.random.default_rng(seed).integers(0, VOCAB, (batch, length))
        return self.module.embed(self.config, self.params, ids)


def _apply(llm, params, *inputs):
    return llm.apply({"params": params}, *inputs)


_jitted = jax.jit(_apply, static_argnums=0)


@functools.cache
def subject_of(key: str) -> Subject:
    return Subject(key)


@pytest.fixture(params=sorted(testing.LLM_CONFIGS))
def subject(request) -> Subject:
    return subject_of(request.param)


def positions_and_mask(batch: int, length: int = LENGTH):
    return jnp.tile(jnp.arange(length), (batch, 1)), jnp.ones((batch, length), bool)


def test_every_family_has_a_tiny_size():
    assert {key.split("/")[0] for key in testing.LLM_CONFIGS} == set(registry.names("llms"))


def test_parameters_are_stacked_and_the_table_is_where_it_belongs(subject):
    config, params = subject.config, subject.params
    assert params["embedder"]["embedding"].shape == (config.vocab_size, config.dim)
    for leaf in jax.tree.leaves(params["layers"]):
        assert leaf.shape[0] == config.num_layers
    assert hash(config) == hash(subject.module.config_from_hf(subject.hf))


def test_batch_equals_single(subject):
    x, (positions, mask) = subject.embeddings(2), positions_and_mask(2)
    batch, cache = subject.apply(x, positions, mask)
    assert cache is None
    assert batch.shape == (2, LENGTH, VOCAB)
    assert batch.dtype == jnp.float32
    for row in range(2):
        one = slice(row, row + 1)
        single, _ = subject.apply(x[one], positions[one], mask[one])
        np.testing.assert_allclose(single, batch[one], atol=ATOL)


@pytest.mark.parametrize("where", ["left", "right", "inside"])
def test_padding_changes_nothing(subject, where):
    """Junk in masked slots (huge, with wild positions) leaves the valid logits alone."""
    x, (positions, mask) = subject.embeddings(1), positions_and_mask(1)
    want, _ = subject.apply(x, positions, mask)
    at = {"left": 0, "right": LENGTH, "inside": 4}[where]
    junk = (
        jnp.full((1, 3, subject.config.dim), 1e3),
        jnp.array([[99, 0, 7]]),
        jnp.zeros((1, 3), bool),
    )
    padded, moved, valid = (
        jnp.concatenate([a[:, :at], extra, a[:, at:]], axis=1)
        for a, extra in zip((x, positions, mask), junk, strict=True)
    )
    got, _ = subject.apply(padded, moved, valid)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[valid], want[0], atol=ATOL)


def test_a_later_token_changes_no_earlier_logit(subject):
    x, (positions, mask) = subject.embeddings(2), positions_and_mask(2)
    before, _ = subject.apply(x, positions, mask)
    after, _ = subject.apply(x.at[:, -1, 0].add(1.0), positions, mask)
    np.testing.assert_array_equal(before[:, :-1], after[:, :-1])
    assert np.abs(before[:, -1] - after[:, -1]).max() > 1e-3


def test_logits_at_are_the_same_logits(subject):
    x, (positions, mask) = subject.embeddings(2), positions_and_mask(2)
    whole, _ = subject.apply(x, positions, mask)
    one, _ = subject.apply(x, positions, mask, None, jnp.array([3, 9]))
    np.testing.assert_allclose(one, np.stack([whole[0, 3], whole[1, 9]]), atol=ATOL)
    at_BL = jnp.array([[0, 3, 3], [9, 1, 4]])
    some, _ = subject.apply(x, positions, mask, None, at_BL)
    np.testing.assert_allclose(some, np.take_along_axis(whole, at_BL[..., None], 1), atol=ATOL)


def test_a_prompt_read_in_pieces_equals_the_whole(subject):
    x, (positions, mask) = subject.embeddings(2), positions_and_mask(2)
    want, _ = subject.apply(x, positions, mask)
    cache = subject.module.init_cache(subject.config, 2, LENGTH + 3, jnp.float32)
    got = []
    for piece in (slice(0, 5), slice(5, 10)):
        logits, cache = subject.apply(x[:, piece], positions[:, piece], mask[:, piece], cache)
        got.append(logits)
    np.testing.assert_allclose(np.concatenate(got, axis=1), want, atol=ATOL)
    assert int(cache["length"]) == LENGTH
    np.testing.assert_array_equal(cache["valid"].sum(axis=1), [LENGTH, LENGTH])


@pytest.mark.parametrize("key", ["gemma", "llama/mistral"])  # their windows count positions
def test_what_stands_before_all_rows_is_read_once(key):
    subject = subject_of(key)
    x, (positions, mask) = subject.embeddings(2), positions_and_mask(2)
    x = x.at[1, :5].set(x[0, :5])
    want, _ = subject.apply(x, positions, mask)
    empty = subject.module.init_cache(subject.config, 1, 6, jnp.float32)  # a slot stays unwritten
    _, prefix = subject.apply(x[:1, :5], positions[:1, :5], mask[:1, :5], empty)
    got, cache = subject.apply(x[:, 5:], positions[:, 5:], mask[:, 5:], None, None, prefix)
    assert cache is None
    np.testing.assert_allclose(got, want[:, 5:], atol=ATOL)


def test_jit_changes_nothing():
    subject = subject_of("gemma")  # the family with two kinds of layers
    x, (positions, mask) = subject.embeddings(2), positions_and_mask(2)
    compiled, _ = subject.apply(x, positions, mask)
    eager, _ = subject.apply(x, positions, mask, jit=False)
    np.testing.assert_allclose(eager, compiled, atol=ATOL)


@pytest.mark.parametrize("key", ["gemma", "llama"])
def test_remat_changes_no_gradient(key):
    subject = subject_of(key)
    x, (positions, mask) = subject.embeddings(2), positions_and_mask(2)

    def loss(x, remat):
        logits, _ = subject.apply(x, positions, mask, remat=remat)
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[..., 0])

    kept, recomputed = (jax.grad(loss)(x, remat) for remat in (False, True))
    assert np.isfinite(kept).all()
    assert np.abs(kept).max() > 1e-6
    np.testing.assert_allclose(recomputed, kept, rtol=1e-4, atol=1e-7)


def test_bfloat16_parameters_and_cache_stay_bfloat16(subject):
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), subject.params)
    x, (positions, mask) = subject.embeddings(1), positions_and_mask(1)
    cache = subject.module.init_cache(subject.config, 1, LENGTH, jnp.bfloat16)
    logits, cache = subject.apply(
        x.astype(jnp.bfloat16), positions, mask, cache, params=half, dtype=jnp.bfloat16
    )
    assert logits.dtype == jnp.float32
    assert cache["k"].dtype == cache["v"].dtype == jnp.bfloat16


def test_unknown_attributes_are_refused_together(subject):
    hf = subject.hf | {"rope_theta": 5e5, "parallel_attn": True, "logit_scale": 0.5}
    with pytest.raises(ConfigError) as error:
        subject.module.config_from_hf(hf)
    assert "parallel_attn = True" in str(error.value)
    assert "logit_scale = 0.5" in str(error.value)
    assert "rope_theta" not in str(error.value)


def test_missing_and_impossible_attributes_are_refused_together(subject):
    hf = {k: v for k, v in subject.hf.items() if k not in ("vocab_size", "intermediate_size")}
    hf["rope_scaling"] = {"rope_type": "spiral", "factor": 2.0}
    with pytest.raises(ConfigError, match="vocab_size is missing") as error:
        subject.module.config_from_hf(hf)
    assert "intermediate_size is missing" in str(error.value)
    assert "'spiral'" in str(error.value)


def test_joined_matrices_give_the_same_logits(subject):
    whole = joined.join(subject.params)
    paths = jax.tree_util.tree_flatten_with_path(whole)[0]
    names = {part.key for path, _ in paths for part in path}
    assert {"qkv", "gate_up"} <= names and not {"q", "k", "v", "gate", "up"} & names
    inputs = (subject.embeddings(2), *positions_and_mask(2))
    apart, _ = subject.apply(*inputs)
    logits, _ = subject.apply(*inputs, params=whole)
    np.testing.assert_allclose(logits, apart, atol=ATOL)
