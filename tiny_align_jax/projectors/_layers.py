"""Layers beside the transformer's: masked convolution, layer mix, and a scan over equal layers."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from tiny_align_jax.types import Array, ConfigError


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


class LayerMix(nn.Module):
    """Weighted mean of encoder layers that stand side by side in the features, weights learned.

    Layers differ in scale by an order of magnitude, so that each is normalised first; the weights are a
    softmax, equal at the start.

    Source: Peters et al. 2018 (ELMo), eq. 1, with layer normalisation.
    """

    num_layers: int

    @nn.compact
    def __call__(self, features_BTE: Array, mask_BT: Array) -> Array:
        batch, frames, width = features_BTE.shape
        if width % self.num_layers:
            raise ConfigError(
                f"projector.bridgeformer.mix_layers={self.num_layers} does not divide the features' "
                f"width {width}; it must be the number of encoder.layers"
            )
        masked_BTE = jnp.where(mask_BT[..., None], features_BTE, 0)
        layers_BTJE = masked_BTE.reshape(batch, frames, self.num_layers, width // self.num_layers)
        normed_BTJE = nn.LayerNorm(use_scale=False, use_bias=False, dtype=jnp.float32)(layers_BTJE)
        weights_J = nn.softmax(self.param("weights", nn.initializers.zeros, (self.num_layers,)))
        gain = self.param("gain", nn.initializers.ones, ())
        mixed_BTE = gain * jnp.einsum("btje,j->bte", normed_BTJE, weights_J)
        return mixed_BTE.astype(features_BTE.dtype)


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
