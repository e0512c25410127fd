"""Augmentation of cached encoder frames, inside the jitted step: pure functions of a key.

The frozen encoder ran once, so what varies is its output: spans of time and channels are masked (as
SpecAugment does to spectrograms, Park et al. 2019), speech is stretched or squeezed in time, and noise
is added at a fraction of the frames' own scale.
"""

import dataclasses

import jax
import jax.numpy as jnp

from tiny_align_jax import checks
from tiny_align_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Config:
    """Strength of each augmentation; zero turns it off.

    Attributes:
        time_masks: spans masked per utterance.
        time_mask_fraction: longest span as a fraction of the utterance.
        channel_mask_fraction: share of channels masked per utterance, contiguous in no order.
        warp: largest relative change of speed, e.g. 0.1 for 0.9 to 1.1.
        noise: standard deviation of added noise relative to the frames' own.
    """

    time_masks: int = 2
    time_mask_fraction: float = 0.1
    channel_mask_fraction: float = 0.15
    warp: float = 0.0
    noise: float = 0.0

    def __post_init__(self):
        fractions = ("time_mask_fraction", "channel_mask_fraction", "warp")
        problems = checks.no_fraction(self, *fractions)
        checks.refuse("augment", [*problems, *checks.below(self, 0, "time_masks", "noise")])


def augment(
    config: Config, key: Array, features_BTE: Array, num_frames_B: Array
) -> tuple[Array, Array]:
    """Augments a batch; returns frames of the same shape and the (possibly changed) lengths."""
    keys = jax.random.split(key, 4)
    if config.warp:
        features_BTE, num_frames_B = _warp(config, keys[0], features_BTE, num_frames_B)
    if config.noise:
        scale = config.noise * _spread(features_BTE, num_frames_B)
        noise = jax.random.normal(keys[1], features_BTE.shape, jnp.float32) * scale
        features_BTE = features_BTE + noise.astype(features_BTE.dtype)
    keep = _time_keep(config, keys[2], features_BTE, num_frames_B)[..., None]
    channels = jax.random.uniform(keys[3], (features_BTE.shape[0], 1, features_BTE.shape[2]))
    keep = keep & (channels >= config.channel_mask_fraction)
    return jnp.where(keep, features_BTE, 0), num_frames_B


def _spread(features_BTE: Array, num_frames_B: Array) -> Array:
    """Standard deviation of each row's own frames, float32[B, 1, 1]; padding would shrink it."""
    valid_BT = jnp.arange(features_BTE.shape[1])[None] < num_frames_B[:, None]
    frames = features_BTE.astype(jnp.float32)
    return jnp.std(frames, axis=(1, 2), keepdims=True, where=valid_BT[..., None])


def _time_keep(config: Config, key: Array, features_BTE: Array, num_frames_B: Array) -> Array:
    """bool[B, T]: False inside masked spans, whose lengths are uniform up to the fraction."""
    batch, frames, _ = features_BTE.shape
    start_key, length_key = jax.random.split(key)
    shape = (batch, config.time_masks, 1)
    total = num_frames_B[:, None, None].astype(jnp.float32)
    length = jax.random.uniform(length_key, shape) * config.time_mask_fraction * total
    start = jax.random.uniform(start_key, shape) * (total - length)
    position = jnp.arange(frames)[None, None]
    masked = (position >= start) & (position < start + length)
    return ~masked.any(axis=1)


def _warp(
    config: Config, key: Array, features_BTE: Array, num_frames_B: Array
) -> tuple[Array, Array]:
    """Changes the speed by linear interpolation between frames; never past the batch's length."""
    batch, frames, _ = features_BTE.shape
    rate = jax.random.uniform(key, (batch,), minval=1 - config.warp, maxval=1 + config.warp)
    new = jnp.clip(jnp.round(num_frames_B * rate), 1, frames).astype(jnp.int32)
    step = (num_frames_B - 1) / jnp.maximum(new - 1, 1)
    source = jnp.arange(frames)[None] * step[:, None]
    low = jnp.clip(
        jnp.floor(source).astype(jnp.int32), 0, jnp.maximum(num_frames_B[:, None] - 1, 0)
    )
    high = jnp.minimum(low + 1, jnp.maximum(num_frames_B[:, None] - 1, 0))
    mix = (source - low)[..., None].astype(features_BTE.dtype)
    take = lambda index: jnp.take_along_axis(features_BTE, index[..., None], axis=1)  # noqa: E731
    return take(low) * (1 - mix) + take(high) * mix, new
