"""Convolutional projector: strided convolutions shorten, residual convolutions mix neighbours.

Knows local order only: tokens further apart than the receptive field never meet. Source: the
convolutional adaptors of speech LLMs (e.g. the 1-D convolution of arXiv 2307.08234); the residual
blocks, the layer norms and the final norm are ours.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from tiny_align_jax import checks
from tiny_align_jax.projectors import _blocks, _layers, _pooling
from tiny_align_jax.projectors._dropout import Dropout
from tiny_align_jax.types import Array

WIDTHS = ("dim",)


@dataclasses.dataclass(frozen=True)
class Config(_pooling.PoolingConfig):
    """Shape of the projector; pooling keys as in `_pooling.PoolingConfig`.

    Attributes:
        num_strided: strided convolutions; each divides the rate by `stride`.
        stride: of each of them.
        num_layers: residual convolution blocks after them.
        dim: channels.
        kernel_width: taps of every convolution.
        dropout: rate on the input and inside the blocks.
    """

    num_strided: int = 2
    stride: int = 2
    num_layers: int = 4
    dim: int = 512
    kernel_width: int = 5
    dropout: float = 0.1

    def __post_init__(self):
        keys = ("num_strided", "stride", "num_layers", "dim", "kernel_width")
        checks.refuse("conv", [*_pooling.wrong_pooling(self), *checks.below(self, 1, *keys)])


def num_audio_tokens(config: Config, num_frames: int) -> int:
    """Audio tokens that `num_frames` encoder frames become."""
    for _ in range(config.num_strided):
        num_frames = -(-num_frames // config.stride)
    return _pooling.pooled_tokens(config, num_frames)


class Block(nn.Module):
    """x + Dense(GELU(convolution(norm(x))))."""

    config: Config
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask_BA: Array, *, train: bool = False) -> Array:
        c = self.config
        h = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        conv = _layers.MaskedConv(c.dim, c.kernel_width, dtype=self.dtype, name="conv")
        h = nn.gelu(conv(h, mask_BA)[0])
        h = Dropout(c.dropout, deterministic=not train)(h)
        return x + nn.Dense(c.dim, dtype=self.dtype, name="out")(h)


class Projector(nn.Module):
    """Attributes and call as `bridgeformer.Projector`."""

    config: Config
    out_dim: int
    out_rms: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features_BTE: Array, frame_mask_BT: Array, *, train: bool = False
    ) -> tuple[Array, Array]:
        """Encoder frames -> audio_BAD float32 and its mask."""
        c = self.config
        x, mask_BA = features_BTE.astype(self.dtype), frame_mask_BT
        x = Dropout(c.dropout, deterministic=not train)(x)
        for i in range(c.num_strided):
            conv = _layers.MaskedConv(
                c.dim, c.kernel_width, c.stride, dtype=self.dtype, name=f"strided_{i}"
            )
            x, mask_BA = conv(x, mask_BA)
            x = nn.gelu(x)
        block = Block(c, self.dtype, name="layers")
        x = _layers.scan_layers(block, x, mask_BA, num_layers=c.num_layers, train=train)
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        x, mask_BA = _pooling.Pool(c, dtype=self.dtype, name="pool")(x, mask_BA)
        x = nn.Dense(self.out_dim, dtype=self.dtype, name="projection")(x)
        return _blocks.OutputNorm(self.out_rms, name="output_norm")(x), mask_BA
