"""Layers beside the transformer's: masked convolution, and a scan over equal layers."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from tiny_align_jax.types import Array


class MaskedConv(nn.Module):
    """Convolution over tokens that sees zeros where the mask is False.

    The padding is fixed and not 'SAME': with a stride, 'SAME' shifts by the parity of the padded length,
    so that silence behind an utterance would change it. Out of n tokens come ceil(n / stride).
    """

    dim: int
    width: int
    stride: int = 1
    depthwise: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask_BA: Array) -> tuple[Array, Array]:
        left = (self.width - 1) // 2
        conv = nn.Conv(
            self.dim,
            (self.width,),
            strides=(self.stride,),
            padding=((left, self.width - 1 - left),),
            feature_group_count=self.dim if self.depthwise else 1,
            dtype=self.dtype,
            name="conv",
        )
        return conv(jnp.where(mask_BA[..., None], x, 0)), mask_BA[:, :: self.stride]


def scan_layers(layer: nn.Module, x: Any, mask_BA: Array, *, num_layers: int, train: bool) -> Any:
    """`num_layers` copies of `layer(x, mask, train=...)`, parameters stacked on a leading axis.

    One layer is traced and compiled instead of `num_layers`.
    """

    def body(layer, carry, _):
        return layer(carry, mask_BA, train=train), None

    scan = nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        length=num_layers,
    )
    return scan(layer, x, None)[0]
