"""Augmentation of cached frames: what it may touch, what it never touches, and how far it goes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiny_align_jax.data import augment
from tiny_align_jax.types import ConfigError

NOTHING = {
    "time_masks": 0,
    "time_mask_fraction": 0.0,
    "channel_mask_fraction": 0.0,
    "warp": 0.0,
    "noise": 0.0,
}
LENGTHS = np.array([50, 31, 8, 1], np.int32)


def _frames(dtype=np.float32, frames=50, width=40):
    values = np.random.default_rng(0).normal(3, 1, (len(LENGTHS), frames, width)).astype(dtype)
    return np.where(np.arange(frames)[None, :, None] < LENGTHS[:, None, None], values, 0)


def _run(features=None, seed=0, **values):
    features = _frames() if features is None else features
    config = augment.Config(**(NOTHING | values))
    run = jax.jit(augment.augment, static_argnums=0)
    out, lengths = run(config, jax.random.key(seed), features, LENGTHS)
    assert out.shape == features.shape and out.dtype == features.dtype
    return np.asarray(out), np.asarray(lengths)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_zero_strength_is_the_identity(dtype):
    features = _frames(dtype)
    out, lengths = _run(features)
    np.testing.assert_array_equal(out, features)
    np.testing.assert_array_equal(lengths, LENGTHS)


def test_time_masks_are_few_short_spans_inside_the_utterance():
    shares = []
    for seed in range(20):
        out, lengths = _run(seed=seed, time_masks=2, time_mask_fraction=0.2)
        np.testing.assert_array_equal(lengths, LENGTHS)
        for row, before, length in zip(out, _frames(), LENGTHS, strict=True):
            gone = ~row[:length].any(-1)
            np.testing.assert_array_equal(row[:length][~gone], before[:length][~gone])
            edges = np.flatnonzero(np.diff(np.concatenate([[0], gone, [0]])))
            assert len(edges) <= 4  # two spans at most
            assert gone.sum() <= 2 * np.ceil(0.2 * length)
        shares.append((~out[0].any(-1)).mean())
    # A span is half its longest on average, and two overlap now and then.
    assert 0.12 < np.mean(shares) < 0.24


def test_channel_masks_cover_an_utterance_and_the_wanted_share():
    gone = []
    for seed in range(20):
        out, _ = _run(seed=seed, channel_mask_fraction=0.25)
        masked = ~out.any(1)
        for row, length in enumerate(LENGTHS):
            valid = out[row, :length]
            assert (valid[:, masked[row]] == 0).all() and (valid[:, ~masked[row]] != 0).all()
        gone.append(masked.mean(1))
    gone = np.array(gone)
    assert abs(gone.mean() - 0.25) < 0.04
    assert gone.std() > 0.02  # each utterance draws its own


def test_warp_changes_lengths_by_at_most_its_rate_and_keeps_the_ends():
    seen = []
    for seed in range(30):
        features = _frames(frames=64)
        out, lengths = _run(features, seed=seed, warp=0.2)
        assert (lengths >= np.maximum(np.round(0.8 * LENGTHS - 1), 1)).all()
        assert (lengths <= np.ceil(1.2 * LENGTHS)).all()
        for row, (old, new) in enumerate(zip(LENGTHS, lengths, strict=True)):
            np.testing.assert_allclose(out[row, 0], features[row, 0], atol=1e-5)
            if new > 1:
                np.testing.assert_allclose(out[row, new - 1], features[row, old - 1], atol=1e-3)
        seen.append(lengths[0] / LENGTHS[0])
    assert min(seen) < 0.9 and max(seen) > 1.1


def test_warp_interpolates_linearly_and_never_leaves_the_padded_length():
    ramp = np.zeros((len(LENGTHS), 50, 1), np.float32)
    ramp[:, :, 0] = np.minimum(np.arange(50)[None], LENGTHS[:, None] - 1)
    for seed in range(10):
        out, lengths = _run(ramp, seed=seed, warp=0.5)
        assert lengths.max() <= 50
        for row, (old, new) in enumerate(zip(LENGTHS, lengths, strict=True)):
            expected = np.linspace(0, old - 1, new) if new > 1 else [0]
            np.testing.assert_allclose(out[row, :new, 0], expected, atol=1e-3)


def test_noise_is_relative_to_the_frames_own_spread_whatever_the_padding():
    features = _frames()
    features[1] *= 10
    long = np.pad(features, ((0, 0), (0, 150), (0, 0)))
    for padded in (features, long):
        out, _ = _run(padded, noise=0.3)
        for row, length in enumerate(LENGTHS[:3]):
            added = (out - padded)[row, :length].std()
            assert abs(added / features[row, :length].std() - 0.3) < 0.04


def test_draws_depend_on_the_key_alone():
    values = {"time_masks": 2, "time_mask_fraction": 0.2, "warp": 0.1, "noise": 0.1}
    first, again, other = _run(seed=1, **values), _run(seed=1, **values), _run(seed=2, **values)
    np.testing.assert_array_equal(first[0], again[0])
    assert np.abs(first[0] - other[0]).max() > 0


def test_gradients_pass_through():
    config = augment.Config(**(NOTHING | {"warp": 0.1, "noise": 0.1, "channel_mask_fraction": 0.3}))
    total = lambda x: augment.augment(config, jax.random.key(0), x, LENGTHS)[0].sum()  # noqa: E731
    gradient = jax.grad(total)(jnp.asarray(_frames()))
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_impossible_strengths_are_all_named():
    with pytest.raises(ConfigError, match=r"warp=1.5.*0 <= x < 1.*noise=-1.*0 or more"):
        augment.Config(warp=1.5, noise=-1)
