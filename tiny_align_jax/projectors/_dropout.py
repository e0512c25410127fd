"""Dropout whose random bits cost almost nothing.

Flax's draws 32 bits an element with Threefry, about a hundred integer operations. On an H100 the two costliest
kernels of a step took 70 us each for a million elements, as long as ten of its matrix products, and were gone
with this module and the changes beside it (docs/performance.md). Here an element's bits are a hash of its
index and 64 random bits drawn once a call, ten operations.

Source: the mixing constants are lowbias32's (Chris Wellons, "Prospecting for Hash Functions", 2018).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax.types import Array


def hashed_bits(seed_2: Array, shape: tuple[int, ...]) -> Array:
    """uint32 of `shape`; equal seeds give equal bits."""
    size = int(np.prod(shape))
    x = jax.lax.iota(jnp.uint32, size).reshape(shape) * np.uint32(0x9E3779B1) ^ seed_2[0]
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = x ^ seed_2[1]  # between the rounds: streams of close seeds are no shifts of one another
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


class Dropout(nn.Module):
    """Zeroes a share `rate` of the elements and scales the rest up; needs a 'dropout' rng."""

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.deterministic or not self.rate:
            return jnp.asarray(x)
        seed_2 = jax.random.bits(self.make_rng("dropout"), (2,))
        keep = hashed_bits(seed_2, x.shape) >= np.uint32(round(self.rate * 2**32))
        return jnp.where(keep, x / (1 - self.rate), 0)
