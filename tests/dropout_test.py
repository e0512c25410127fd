"""Dropout: the share that is dropped, and that neither elements, calls nor layers share their fate."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax.projectors._dropout import Dropout, hashed_bits


def _kept(seed, rate=0.2, shape=(64, 256)):
    rngs = {"dropout": jax.random.key(seed)}
    return np.asarray(Dropout(rate, deterministic=False).apply({}, jnp.ones(shape), rngs=rngs))


def test_drops_its_share_and_keeps_the_mean():
    for rate in (0.1, 0.5):
        out = _kept(0, rate)
        assert abs((out == 0).mean() - rate) < 0.01
        assert set(np.unique(out)) == {np.float32(0), np.float32(1 / (1 - rate))}
        assert abs(out.mean() - 1) < 0.02


def test_masks_of_calls_rows_and_neighbours_are_unrelated():
    first, second = (_kept(seed) == 0 for seed in (0, 1))
    pairs = [(first, second), (first[1:], first[:-1]), (first[:, 1:], first[:, :-1])]
    for a, b in pairs:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.03
    np.testing.assert_array_equal(_kept(0), _kept(0))


def test_close_seeds_give_no_shifted_copies():
    a, b = (np.asarray(hashed_bits(jnp.array([s, 7], jnp.uint32), (4096,))) for s in (0, 1))
    for shift in range(-4, 5):
        assert (np.roll(a, shift) == b).mean() < 0.01
    bits = np.unpackbits(a.view(np.uint8)).reshape(-1, 32).mean(0)
    assert np.abs(bits - 0.5).max() < 0.05


def test_scanned_layers_draw_their_own():
    scan = nn.scan(
        lambda layer, x, _: (x, layer(x)), split_rngs={"dropout": True}, length=3,
        variable_axes={"params": 0},
    )  # fmt: skip

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            return scan(Dropout(0.5, deterministic=False), x, None)[1]

    masks = np.asarray(Stack().apply({}, jnp.ones((8, 64)), rngs={"dropout": jax.random.key(0)}))
    assert (masks[0] != masks[1]).any() and (masks[1] != masks[2]).any()


def test_off_without_a_rate_or_when_deterministic():
    x = jnp.arange(6.0).reshape(2, 3)
    for module in (Dropout(0.0, deterministic=False), Dropout(0.5, deterministic=True)):
        np.testing.assert_array_equal(module.apply({}, x), x)
