"""Attention of frozen encoders and projectors: cuDNN's flash kernel where there is one, XLA's elsewhere.

XLA writes the float32 scores of all pairs of tokens to memory, several times over in a gradient; the flash
kernel never does. Its gradient sums in no fixed order, so that two equal runs on a GPU may differ in
the last bits; XLA_FLAGS=--xla_gpu_deterministic_ops=true makes them equal.
"""

import functools

import jax
import jax.numpy as jnp
from absl import logging

from tiny_align_jax.types import Array

KINDS = ("auto", "xla", "cudnn")
_LARGEST_HEAD = 128
# Pairs of tokens from which a CPU works row by row. Eight rows of Whisper tiny's 512 x 512 x 6 scores take
# 14 ms so and 56 ms at once, on two cores: 50 MB of scores do not fit any cache.
_LONG = 256 * 256
_MASKED = -1e30  # finite: a row without a valid key stays free of NaN
HALVES = (jnp.bfloat16, jnp.float16)


def attend(
    q_BAHK: Array, k_BTHK: Array, v_BTHK: Array, mask_BT: Array | None = None, kind: str = "auto"
) -> jax.Array:
    """Softmax attention over the valid keys, [B, A, H, K].

    Args:
        q_BAHK: queries. k_BTHK: keys. v_BTHK: values.
        mask_BT: True at valid keys, a prefix of each row; None if all are valid.
        kind: 'xla', 'cudnn', or 'auto': cuDNN for half-precision activations where it has a kernel.
    """
    if kind == "cudnn" or (kind == "auto" and _suits_cudnn(q_BAHK, k_BTHK) and _has_cudnn()):
        num_keys_B = None
        if mask_BT is not None:
            num_keys_B = jnp.maximum(mask_BT.sum(-1), 1).astype(jnp.int32)
        return _flash(q_BAHK, k_BTHK, v_BTHK, num_keys_B)
    mask = None if mask_BT is None else mask_BT[:, None, None, :]
    if q_BAHK.shape[1] * k_BTHK.shape[1] >= _LONG and jax.default_backend() == "cpu":
        return _row_by_row(q_BAHK, k_BTHK, v_BTHK, mask)
    return jax.nn.dot_product_attention(q_BAHK, k_BTHK, v_BTHK, mask=mask, implementation="xla")


def _row_by_row(q_BAHK: Array, k_BTHK: Array, v_BTHK: Array, mask_B11T: Array | None) -> jax.Array:
    """One utterance after the other, so that its scores stay in a CPU's cache."""
    if mask_B11T is None:
        mask_B11T = jnp.ones((q_BAHK.shape[0], 1, 1, k_BTHK.shape[1]), bool)

    def one(row):
        q_AHK, k_THK, v_THK, mask_11T = row
        q_HAK, k_HTK, v_HTK = (jnp.swapaxes(x, 0, 1) for x in (q_AHK, k_THK, v_THK))
        products_HAT = jnp.matmul(
            q_HAK, jnp.swapaxes(k_HTK, 1, 2), preferred_element_type=jnp.float32
        )
        scores_HAT = jnp.where(mask_11T, products_HAT * k_HTK.shape[-1] ** -0.5, _MASKED)
        weights_HAT = jax.nn.softmax(scores_HAT).astype(v_HTK.dtype)
        return jnp.swapaxes(weights_HAT @ v_HTK, 0, 1)

    return jax.lax.map(one, (q_BAHK, k_BTHK, v_BTHK, mask_B11T))


def _flash(q_BAHK: Array, k_BTHK: Array, v_BTHK: Array, num_keys_B: Array | None) -> jax.Array:
    return jax.nn.dot_product_attention(
        q_BAHK, k_BTHK, v_BTHK, key_value_seq_lengths=num_keys_B, implementation="cudnn"
    )


def _suits_cudnn(q_BAHK: Array, k_BTHK: Array) -> bool:
    width = q_BAHK.shape[-1]
    even = not (q_BAHK.shape[1] % 2 or k_BTHK.shape[1] % 2)
    return q_BAHK.dtype in HALVES and even and width % 8 == 0 and width <= _LARGEST_HEAD


@functools.cache
def _has_cudnn() -> bool:
    """Whether the kernel and its gradient can be built here: tried once, on a small shape."""
    if jax.default_backend() == "cpu":
        return False
    x = jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.bfloat16)
    counts = jax.ShapeDtypeStruct((1,), jnp.int32)
    gradient = jax.grad(lambda q, k, v, n: _flash(q, k, v, n).astype(jnp.float32).sum(), (0, 1, 2))
    try:
        jax.jit(gradient).lower(x, x, x, counts).compile()
    except (
        Exception
    ) as error:  # another maker's GPU, an old one, no cuDNN: each fails in its own way
        logging.info("attention by XLA, cuDNN has no kernel here: %s", str(error).split("\n")[0])
        return False
    return True
