"""Edit distance on the device: whole batches of token sequences, one scan over time."""

import jax
import jax.numpy as jnp

from tiny_align_jax.types import Array


def edit_distance(
    hypothesis_BA: Array, hypothesis_count_B: Array, target_BL: Array, target_count_B: Array
) -> Array:
    """Fewest insertions, deletions and substitutions from hypothesis to target, int32[B].

    One row of the table of prefixes at a time. Within a row, a cell depends on the cell before it
    (a missing word); that chain is a running minimum, so a row is computed at once.

    Args:
        hypothesis_BA: tokens; those behind the count may hold anything.
        hypothesis_count_B: how many of them count.
        target_BL: likewise, of the target.
        target_count_B: likewise.
    """
    hypothesis_BA, target_BL = jnp.asarray(hypothesis_BA), jnp.asarray(target_BL)
    batch, length = target_BL.shape
    place = jnp.arange(length + 1)

    def step(row, inputs):
        token_B, index = inputs
        replaced = row[:, :-1] + (token_B[:, None] != target_BL)
        new = jnp.minimum(row + 1, jnp.pad(replaced, ((0, 0), (1, 0)), constant_values=2 * length))
        new = new.at[:, 0].set(index + 1)
        new = place + jax.lax.cummin(new - place, axis=1)
        return jnp.where((index < hypothesis_count_B)[:, None], new, row), None

    first = jnp.broadcast_to(place, (batch, length + 1))
    tokens = (hypothesis_BA.T, jnp.arange(hypothesis_BA.shape[1]))
    last, _ = jax.lax.scan(step, first, tokens)
    return jnp.take_along_axis(last, jnp.asarray(target_count_B)[:, None], axis=1)[:, 0]
