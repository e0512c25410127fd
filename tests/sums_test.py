"""Biases and scales with gradients from sums in two stages, against flax's own layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiny_align_jax.projectors import _sums

HALF = jnp.bfloat16
LAYERS = {
    "dense": (lambda: _sums.dense(24, HALF, "a"), lambda: nn.Dense(24, dtype=HALF, name="a")),
    "heads": (
        lambda: _sums.dense((2, 12), HALF, "a"),
        lambda: nn.DenseGeneral((2, 12), dtype=HALF, name="a"),
    ),
    "from heads": (
        lambda: _sums.dense(24, HALF, "a", axis=(-2, -1)),
        lambda: nn.DenseGeneral(24, axis=(-2, -1), dtype=HALF, name="a"),
    ),
    "norm": (lambda: _sums.layer_norm(HALF, "a"), lambda: nn.LayerNorm(dtype=HALF, name="a")),
}


@pytest.mark.parametrize("name", LAYERS)
def test_values_parameters_and_gradients_are_those_of_flax(name):
    shape = (3, 40, 4, 5) if name == "from heads" else (3, 40, 20)
    x = jax.random.normal(jax.random.key(0), shape, HALF)
    ours, theirs = (make() for make in LAYERS[name])
    params = theirs.init(jax.random.key(1), x)["params"]
    np.testing.assert_array_equal(
        *(jax.tree.leaves(m.init(jax.random.key(1), x)["params"])[-1] for m in (ours, theirs))
    )
    params = jax.tree.map(
        lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params
    )
    mix = jax.random.normal(jax.random.key(2), theirs.apply({"params": params}, x).shape)

    def loss(module, params, x):
        return (module.apply({"params": params}, x).astype(jnp.float32) * mix).sum()

    values = [loss(m, params, x) for m in (ours, theirs)]
    np.testing.assert_allclose(*values, rtol=0.02, atol=0.5)
    got, wanted = (jax.grad(loss, (1, 2))(m, params, x) for m in (ours, theirs))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        scale = float(jnp.abs(b.astype(jnp.float32)).max())
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=0.02 * scale)


def test_bias_gradients_are_sums_in_float32():
    # 4096 times 1 + 2^-7: bfloat16 sums would stop at 256.
    x = jnp.full((4096, 8), 1 + 2**-7, HALF)
    sums = _sums.column_sums(x, (8,))
    np.testing.assert_allclose(sums, 4096 * (1 + 2**-7), rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 64, 96])
def test_any_number_of_rows_is_summed_under_vmap_too(rows):
    x = jax.random.normal(jax.random.key(0), (2, rows, 6), HALF)
    sums = jax.vmap(lambda x: _sums.column_sums(x, (2, 3)))(x)
    wanted = np.asarray(x, np.float32).sum(1).reshape(2, 2, 3)
    np.testing.assert_allclose(sums, wanted, rtol=1e-5, atol=1e-5)


def test_float32_layers_are_flax_own():
    assert isinstance(_sums.dense(4, jnp.float32, "a"), nn.Dense)
    assert isinstance(_sums.layer_norm(jnp.float32, "a"), nn.LayerNorm)


def test_several_layers_of_one_input_are_those_layers():
    x = jax.random.normal(jax.random.key(0), (3, 40, 20), HALF)

    class Joined(nn.Module):
        @nn.compact
        def __call__(self, x):
            return sum(_sums.denses((2, 12), HALF, ("a", "b"))(x))

    class Apart(nn.Module):
        @nn.compact
        def __call__(self, x):
            return sum(_sums.dense((2, 12), HALF, name)(x) for name in "ab")

    joined, apart = Joined(), Apart()
    params = apart.init(jax.random.key(1), x)
    same = lambda a, b: np.testing.assert_array_equal(a, b)  # noqa: E731
    jax.tree.map(same, joined.init(jax.random.key(1), x), params)
    loss = lambda m, p, x: jnp.square(m.apply(p, x).astype(jnp.float32)).mean()  # noqa: E731
    got, wanted = (jax.grad(loss, (1, 2))(m, params, x) for m in (joined, apart))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        np.testing.assert_allclose(a, b, atol=0.02 * float(jnp.abs(b).max()))
