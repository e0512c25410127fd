"""The shared layers: rotary scalings by formula, quantised slots, the KV cache in place."""

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiny_align_jax import registry, testing
from tiny_align_jax.llms import _blocks, _hf, _rope
from tiny_align_jax.types import ConfigError
from tiny_align_jax.weights import loading


def rope_of(parameters, head_dim=8, max_length=None):
    attributes = _hf.Attributes({}, "test")
    rope = _rope.rope_from_parameters(attributes, parameters, head_dim, max_length)
    attributes.finish()
    return rope


def angle_of(rope, position: int) -> np.ndarray:
    cos, sin = _rope.angles(rope, jnp.array([[position]]), jnp.ones((1, 1), bool))
    return np.arctan2(sin, cos)[0, 0]


def test_rotation_is_by_position_times_frequency():
    rope = rope_of({"rope_theta": 16.0})
    np.testing.assert_allclose(angle_of(rope, 1), [1.0, 0.5, 0.25, 0.125], rtol=1e-6)
    x = jnp.arange(8.0).reshape(1, 1, 1, 8)
    cos, sin = _rope.angles(rope, jnp.array([[1]]), jnp.ones((1, 1), bool))
    turned = _rope.rotate(x, cos, sin)[0, 0, 0]
    for i, angle in enumerate([1.0, 0.5, 0.25, 0.125]):
        c, s = math.cos(angle), math.sin(angle)
        np.testing.assert_allclose(turned[i], i * c - (i + 4) * s, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(turned[i + 4], (i + 4) * c + i * s, rtol=1e-5, atol=1e-6)


def test_partial_rotation_passes_the_rest_through():
    rope = rope_of({"partial_rotary_factor": 0.5})
    cos, sin = _rope.angles(rope, jnp.array([[3]]), jnp.ones((1, 1), bool))
    x = jnp.arange(8.0).reshape(1, 1, 1, 8)
    turned = _rope.rotate(x, cos, sin)
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
    assert not np.allclose(turned[..., :4], x[..., :4])


def test_linear_scaling_divides_the_position():
    plain, stretched = rope_of({}), rope_of({"rope_type": "linear", "factor": 4.0})
    np.testing.assert_allclose(angle_of(stretched, 8), angle_of(plain, 2), rtol=1e-6)


def test_llama3_scaling_stretches_long_waves_only():
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    ratio = angle_of(rope_of(scaling), 1) / angle_of(rope_of({"rope_theta": 10_000.0}), 1)
    # Wavelengths 6.3, 63, 628 and 6283 tokens: below 64/4 kept, above 64/1 stretched, 63 between.
    np.testing.assert_allclose(ratio[[0, 2, 3]], [1.0, 1 / 8, 1 / 8], rtol=1e-5)
    assert 1 / 8 < ratio[1] < 0.2


def test_longrope_picks_factors_by_row_and_scales_the_magnitude():
    scaling = {
        "type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 4,
    }
    rope = rope_of(scaling, max_length=64)
    assert rope.magnitude == pytest.approx(math.sqrt(1 + math.log(16) / math.log(4)))
    positions = jnp.array([[0, 1, 2, 3, 4], [0, 1, 2, 3, 9]])
    mask = jnp.array([[True] * 5, [True] * 4 + [False]])
    cos, sin = _rope.angles(rope, positions, mask)
    np.testing.assert_allclose(np.arctan2(sin, cos)[:, 1, 0], [0.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose(cos**2 + sin**2, rope.magnitude**2, rtol=1e-5)


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"rope_type": "yarn", "factor": 2.0}, "yarn"),
        ({"rope_type": "linear"}, "lacks 'factor'"),
        ({"rope_type": "default", "mscale": 0.7}, "mscale = 0.7"),
        ({"partial_rotary_factor": 0.4}, "expected an even number"),
        (
            {
                "rope_type": "longrope",
                "short_factor": [1.0],
                "long_factor": [1.0],
                "original_max_position_embeddings": 4,
            },
            "short_factor has 1 values, expected 4",
        ),
    ],
)
def test_rotary_parameters_that_are_not_understood_are_refused(parameters, complaint):
    with pytest.raises(ConfigError, match=complaint):
        rope_of(parameters)


@flax.struct.dataclass
class Int8Weight:
    """The simplest quantised matrix: int8 and a scale for every output."""

    values: jax.Array
    scale: jax.Array

    def matmul(self, x, dtype=None):
        y = (x @ self.values.T.astype(x.dtype)) * self.scale[:, 0].astype(x.dtype)
        return y.astype(dtype or x.dtype)


@flax.struct.dataclass
class Int8Table:
    values: jax.Array
    scale: jax.Array

    def take(self, ids):
        return self.values[ids] * self.scale[ids]

    def attend(self, x):
        return (x @ self.values.T.astype(x.dtype)) * self.scale[:, 0]


def quantise(x, axis: int):
    scale = jnp.max(jnp.abs(x), axis=axis, keepdims=True) / 127
    return jnp.round(x / scale).astype(jnp.int8), scale


def to_int8(path, leaf):
    name = path[-1].key
    if name == "weight":
        return Int8Weight(*quantise(leaf, axis=-1))
    return Int8Table(*quantise(leaf, axis=-1)) if name == "embedding" else leaf


@pytest.mark.parametrize("key", ["llama", "phi"])
def test_a_quantised_representation_plugs_into_every_slot(key):
    """int8 trees run through the same module, scanned, tied and untied, close to float32."""
    module = registry.resolve("llms", key)
    config = module.config_from_hf(testing.LLM_CONFIGS[key])
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), jnp.float32),
        loading.llm_shapes(module, config),
    )
    ids = jnp.arange(12).reshape(2, 6)
    positions, mask = jnp.tile(jnp.arange(6), (2, 1)), jnp.ones((2, 6), bool)

    @jax.jit
    def logits(params):
        x = module.embed(config, params, ids)
        return module.LLM(config).apply({"params": params}, x, positions, mask)[0]

    want = logits(params)
    got = logits(jax.tree_util.tree_map_with_path(to_int8, params))
    error = np.sqrt(np.mean((got - want) ** 2)) / np.std(want)
    assert 0 < error < 0.05


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_both_forms_of_the_product_agree(dtype):
    """The form for GPUs is never chosen on the machines that run most tests, so it is called here."""
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.standard_normal(s), dtype) for s in ((2, 2, 64), (24, 64)))
    want = np.einsum("...i,oi->...o", *(np.asarray(a, np.float64) for a in (x, weight)))
    for form in (_blocks._dot, _blocks._sum_of_products):
        got = form(x, weight, jnp.float32)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, atol=1e-4)
        assert form(x, weight, dtype).dtype == dtype


def test_a_wrong_shape_is_still_refused():
    with pytest.raises(Exception, match="shape"):
        _blocks.Dense(4).apply({"params": {"weight": jnp.zeros((5, 3))}}, jnp.zeros((1, 3)))


def test_a_decode_step_copies_no_cache():
    """The compiled step updates a donated cache in place: temporaries stay below one layer's share."""
    module = registry.resolve("llms", "llama")
    config = module.config_from_hf(testing.LLM_CONFIGS["llama"] | {"num_hidden_layers": 8})
    params = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), loading.llm_shapes(module, config))
    slots = 4096
    cache = module.init_cache(config, 1, slots, jnp.float32)
    whole = cache["k"].nbytes + cache["v"].nbytes

    @jax.jit
    def steps(params, cache):
        def step(_, cache):
            one = jnp.ones((1, 1), jnp.int32)
            x = jnp.ones((1, 1, config.dim))
            return module.LLM(config).apply({"params": params}, x, one, one > 0, cache)[1]

        return jax.lax.fori_loop(0, 4, step, cache)

    compiled = jax.jit(steps, donate_argnums=1).lower(params, cache).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < whole / 2


def test_logits_of_a_bfloat16_head_are_not_rounded_to_bfloat16():
    """Rounded logits tie often, and a tie makes greedy answers arbitrary."""
    module = registry.resolve("llms", "phi")  # untied
    config = module.config_from_hf(testing.LLM_CONFIGS["phi"])
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), jnp.bfloat16),
        loading.llm_shapes(module, config),
    )
    positions, mask = jnp.arange(6)[None], jnp.ones((1, 6), bool)
    x = module.embed(config, params, positions)
    logits, _ = module.LLM(config, jnp.bfloat16).apply({"params": params}, x, positions, mask)
    assert (logits != logits.astype(jnp.bfloat16).astype(jnp.float32)).mean() > 0.5


def test_gradients_of_products_are_those_of_autodiff():
    x, weight = jax.random.normal(jax.random.key(0), (2, 5, 8)), jnp.ones((6, 8)).at[0].set(2.0)
    ours = jax.grad(lambda x, w: jnp.sin(_blocks.product(x, w, jnp.float32)).sum(), (0, 1))
    plain = jax.grad(lambda x, w: jnp.sin(x @ w.T).sum(), (0, 1))
    for a, b in zip(ours(x, weight), plain(x, weight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    half = ours(x.astype(jnp.bfloat16), weight.astype(jnp.bfloat16))
    assert {g.dtype for g in half} == {np.dtype(jnp.bfloat16)}


def _plain_attention(q, k, v, mask):
    repeated = [jnp.repeat(a, q.shape[2] // k.shape[1], axis=1) for a in (k, v)]
    scores = jnp.einsum("bnhk,bhmk->bhnm", q, repeated[0]) * 0.3
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30), axis=-1)
    return jnp.einsum("bhnm,bhmk->bnhk", weights, repeated[1])


def test_grouped_attention_and_its_gradients_are_those_of_repeated_keys():
    keys = jax.random.split(jax.random.key(3), 3)
    q = jax.random.normal(keys[0], (2, 3, 4, 8))
    k, v = (jax.random.normal(key, (2, 2, 5, 8)) for key in keys[1:])
    mask = jnp.tril(jnp.ones((2, 3, 5), bool), 1)
    ours = lambda q, k, v: _blocks.attend(q, k, v, mask, 0.3)  # noqa: E731
    plain = lambda q, k, v: _plain_attention(q, k, v, mask)  # noqa: E731
    np.testing.assert_allclose(ours(q, k, v), plain(q, k, v), rtol=1e-5, atol=1e-6)
    grads = [
        jax.grad(lambda *a, f=f: jnp.sin(f(*a)).sum(), (0, 1, 2))(q, k, v) for f in (ours, plain)
    ]
    for a, b in zip(*grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_a_gpus_sums_for_one_token_are_the_dots(monkeypatch, soft_cap):
    keys = jax.random.split(jax.random.key(4), 3)
    q = jax.random.normal(keys[0], (2, 1, 4, 8))
    k, v = (jax.random.normal(key, (2, 2, 5, 8)) for key in keys[1:])
    mask = jnp.array([[[1, 1, 1, 0, 0]], [[1, 1, 1, 1, 1]]], bool)
    dots = _blocks.attend(q, k, v, mask, 0.3, soft_cap)
    choose = lambda *args, cuda, **others: cuda(*args)  # noqa: E731
    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
    np.testing.assert_allclose(
        _blocks.attend(q, k, v, mask, 0.3, soft_cap), dots, rtol=1e-5, atol=1e-6
    )
