"""Large arrays on their way to a device, a piece at a time.

PJRT copies what is sent to a GPU into pinned host memory first (arrays below 1 GiB, XLA's
`should_stage_host_to_device_transfers`). That pool grows with all that is under way at once and never shrinks:
whole trees sent at once left 0.5 to 1.2 GB of it (H100, JAX 0.11.2). A board has that memory once only.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax.types import PyTree

PIECE_BYTES = 32 << 20


def put(tree: PyTree) -> PyTree:
    """`jax.device_put` that sends little at once and returns when all has arrived.

    A CPU takes over arrays that begin at a multiple of 64 bytes, whole.
    """
    if jax.default_backend() == "cpu":
        return jax.device_put(tree)
    return put_in_pieces(tree, PIECE_BYTES)


def put_in_pieces(tree: PyTree, piece_bytes: int) -> PyTree:
    """`put` with at most two pieces under way, or one row where a row is larger than a piece."""
    leaves, structure = jax.tree.flatten(tree)
    placed, waiting = [], 0
    for leaf in leaves:
        size = leaf.nbytes if isinstance(leaf, np.ndarray) else 0
        whole = size <= piece_bytes
        placed.append(jax.device_put(leaf) if whole else _in_pieces(leaf, piece_bytes))
        waiting += size
        if waiting > piece_bytes:
            jax.block_until_ready(placed)
            waiting = 0
    return jax.block_until_ready(jax.tree.unflatten(structure, placed))


def _in_pieces(array: np.ndarray, piece_bytes: int) -> jax.Array:
    rows = max(1, piece_bytes * len(array) // array.nbytes)
    whole = jnp.zeros(array.shape, array.dtype)
    for start in range(0, len(array), rows):
        start = min(start, len(array) - rows)  # one shape, one program
        whole = fill(whole, array[start : start + rows], (start,) + (0,) * (array.ndim - 1))
        jax.block_until_ready(whole)
    return whole


@functools.partial(jax.jit, donate_argnums=0)
def fill(whole: jax.Array, part: Any, start: Sequence[int]) -> jax.Array:
    """`whole`, given away, with `part` written at index `start`."""
    return jax.lax.dynamic_update_slice(whole, part, start)
