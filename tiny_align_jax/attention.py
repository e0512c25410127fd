"""Attention of frozen encoders and projectors: cuDNN's flash kernel where there is one, XLA's elsewhere.

XLA writes the float32 scores of all pairs of tokens to memory, several times over in a gradient; the flash
kernel never does. Its gradient sums in no fixed order, so that two equal runs on a GPU may differ in
the last bits; XLA_FLAGS=--xla_gpu_deterministic_ops=true makes them equal.
"""

import functools

import jax
import jax.numpy as jnp

from tiny_align_jax.types import Array

KINDS = ("auto", "xla", "cudnn")
_LARGEST_HEAD = 128
_FIRST_CAPABILITY = 8.0  # Ampere


def attend(
    q_BAHK: Array, k_BTHK: Array, v_BTHK: Array, mask_BT: Array | None = None, kind: str = "auto"
) -> jax.Array:
    """Softmax attention over the valid keys, [B, A, H, K].

    Args:
        q_BAHK: queries. k_BTHK: keys. v_BTHK: values.
        mask_BT: True at valid keys, a prefix of each row; None if all are valid.
        kind: 'xla', 'cudnn', or 'auto': cuDNN for float16 and bfloat16 on an NVIDIA GPU that can.
    """
    lengths = (q_BAHK.shape[1], k_BTHK.shape[1])
    if kind == "cudnn" or (kind == "auto" and _suits_cudnn(q_BAHK, lengths)):
        num_keys_B = None
        if mask_BT is not None:
            num_keys_B = jnp.maximum(mask_BT.sum(-1), 1).astype(jnp.int32)
        return jax.nn.dot_product_attention(
            q_BAHK, k_BTHK, v_BTHK, key_value_seq_lengths=num_keys_B, implementation="cudnn"
        )
    mask = None if mask_BT is None else mask_BT[:, None, None, :]
    return jax.nn.dot_product_attention(q_BAHK, k_BTHK, v_BTHK, mask=mask, implementation="xla")


def _suits_cudnn(q_BAHK: Array, lengths: tuple[int, int]) -> bool:
    width = q_BAHK.shape[-1]
    fits = width % 8 == 0 and width <= _LARGEST_HEAD and not any(n % 2 for n in lengths)
    return fits and q_BAHK.dtype in (jnp.bfloat16, jnp.float16) and _has_flash_kernel()


@functools.cache
def _has_flash_kernel() -> bool:
    device = jax.devices()[0]
    is_cuda = "cuda" in device.client.platform_version.lower()
    return is_cuda and float(getattr(device, "compute_capability", 0)) >= _FIRST_CAPABILITY
